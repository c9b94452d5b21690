"""Run a function of a worker module on n gloo ranks, and bring what each returns back as JSON.

    results = run_ranks("tests.distributed.zero_worker:cases", ranks=2, payload={"stages": [0, 3]}, timeout=120)

Starting up costs more than a small case, so a function should run many cases in its one process group. The payload
and the results are JSON values. A rank that fails ends all others, and its traceback becomes the test's failure; a
rank that hangs shows its stacks and is ended at the timeout.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("kernels", "model_zoo", "trainer", ".")


class RanksError(AssertionError):
    """At least one rank did not return a result; the message holds what each rank wrote."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The environment that a launcher would give to one rank."""
    path = os.pathsep.join([*(str(REPOSITORY / root) for root in SOURCE_ROOTS), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path.rstrip(os.pathsep),
    }


def run_ranks(
    target: str, ranks: int, payload: Any = None, timeout: float = 120, environment: dict[str, str] | None = None
) -> list[Any]:
    """Call `function(ranks: Ranks, payload)` of `target` ("package.module:function") on every rank; what they return,
    in rank order.

    Raises:
        RanksError: a rank raised, died, or had not finished after `timeout` seconds.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(ranks)]
        processes = []
        for rank, log in enumerate(logs):
            with log.open("w") as output:
                command = [sys.executable, "-m", "tests.distributed.spawn", target, json.dumps(payload), folder]
                env = rank_environment(rank, ranks, port) | {"RANKS_WATCHDOG": str(timeout)} | (environment or {})
                processes.append(
                    subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=output, stderr=subprocess.STDOUT)
                )
        try:
            codes = _wait(processes, timeout + 10)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if any(code != 0 for code in codes):
            parts = [f"--- rank {r} (exit code {codes[r]}) ---\n{logs[r].read_text()[-6000:]}" for r in range(ranks)]
            raise RanksError(f"{target} on {ranks} ranks\n" + "\n".join(parts))
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> list[int | None]:
    """Exit codes; None for a rank that was still running when another failed or time was up."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes):
            return codes
        if any(codes):  # one failed: give the others a moment to say why, too
            deadline = min(deadline, time.monotonic() + 3)
        time.sleep(0.05)
    return [process.poll() for process in processes]


def main(target: str, payload: str, folder: str) -> None:
    """One rank."""
    faulthandler.dump_traceback_later(float(os.environ["RANKS_WATCHDOG"]), exit=True)
    code = 0
    try:
        from intern_trainer.ranks import init_ranks

        ranks = init_ranks()
        module, name = target.split(":")
        result = getattr(importlib.import_module(module), name)(ranks, json.loads(payload))
        (Path(folder) / f"{ranks.rank}.json").write_text(json.dumps(result))
        ranks.barrier()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a peer that waits in a collective must not keep this rank from ending


if __name__ == "__main__":
    main(*sys.argv[1:])
