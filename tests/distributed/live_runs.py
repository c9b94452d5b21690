"""Real runs of the trainer, started as a user starts them, to be interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.distributed.spawn import REPOSITORY, free_port

FOREVER = 1_000_000
PATIENCE = 120.0
MARK = "INTERN_LIVE_RUN"
TINY = (
    "model.image=metanet_debug", "model.image_size=64", "model.embed_dim=16",
    "model.text={width: 32, layers: 1, heads: 2, context_length: 12}",
    "data.lanes=4", "data.shuffle_window=64", "data.workers=1", "train.global_batch=8", "train.precision=fp32",
    "train.ema_decay=0.9", "train.threads=1", "optim.schedule={kind: constant, warmup_steps: 5}", "log.every=1",
    "evaluate={validation: {}, test: {}}",
)  # fmt: skip
BIN = Path(sys.executable).parent
LAUNCHERS: dict[str, Callable[[int], list[str]]] = {
    "python": lambda ranks: [],
    "torchrun": lambda ranks: [
        str(BIN / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", str(free_port()),
        "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    ],
    "deepspeed": lambda ranks: [str(BIN / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(free_port())],
}  # fmt: skip


class LiveRun:
    """One start of the run in `folder`.

    Args:
        stage: of ZeRO. background: of checkpoints, see `checkpoint.background`.
        steps: to train in all. The learning rate does not depend on it, so a run without end can be finished later.
    """

    def __init__(
        self,
        folder: Path,
        launcher: str,
        steps: int = FOREVER,
        ranks: int = 2,
        stage: int = 1,
        every: int = 5,
        background: str = "auto",
    ) -> None:
        self.folder, self.launcher = folder, launcher
        self.mark = uuid.uuid4().hex
        ds_config = folder.parent / f"zero{stage}.json"
        ds_config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        saves = [f"checkpoint.every={every}", f"checkpoint.background={background}"]
        settings = [f"run.dir={folder}", f"train.steps={steps}", *saves, *TINY]
        command = [
            sys.executable,
            *LAUNCHERS[launcher](ranks),
            "trainer/run.py",
            "--ds_config",
            str(ds_config),
            *settings,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark}
        self.log = folder.parent / f"{self.mark}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_as_from_a_terminal,
            )

    def processes(self) -> list[psutil.Process]:
        """All processes of this start that live, whoever their parent is now."""
        return [process for process in psutil.process_iter() if _environment(process).get(MARK) == self.mark]

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank: of those with its number the one whose parent is none of them, but the launcher."""
        if self.launcher == "python":
            return psutil.Process(self.process.pid)
        alike = {p.pid: p for p in self.processes() if _environment(p).get("RANK") == str(number)}
        return next(process for process in alike.values() if process.ppid() not in alike)

    def wait_for_step(self, step: int) -> None:
        """Until the records reach `step`, beyond what was there when the run was started."""
        self._wait(lambda: max(losses(self.folder), default=0) >= step, f"step {step}")

    def wait_for(self, pattern: str) -> None:
        """Until a file or folder in checkpoints/ matches."""
        checkpoints = self.folder / "checkpoints"
        self._wait(lambda: any(checkpoints.glob(pattern)), pattern, pause=0)

    def wait_until_gone(self) -> int:
        """Until no process of this start is left; the exit code of the one that we started."""
        deadline = time.monotonic() + PATIENCE
        code = self.process.wait(PATIENCE)
        while self.processes():
            assert time.monotonic() < deadline, f"still running: {self.processes()}\n{self.output()}"
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as a machine that is switched off."""
        for process in self.processes():
            process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-8000:]

    def _wait(self, condition: Callable[[], bool], what: str, pause: float = 0.01) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.output()}"
            assert time.monotonic() < deadline, f"no {what} after {PATIENCE} s:\n{self.output()}"
            time.sleep(pause)


def _as_from_a_terminal() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def live_run(folder: Path, launcher: str, **options: Any) -> Iterator[LiveRun]:
    """A start that leaves no process behind, whatever becomes of the test."""
    run = LiveRun(folder, launcher, **options)
    try:
        yield run
    finally:
        run.kill()


def losses(folder: Path) -> dict[int, float]:
    """Loss by step; fails where a step was recorded twice. A line that is being written is passed over."""
    path = folder / "metrics.jsonl"
    found: dict[int, float] = {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            record = json.loads(line)
            if "loss" in record:
                assert record["step"] not in found, f"step {record['step']} was recorded twice"
                found[record["step"]] = record["loss"]
    return found


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def finish(folder: Path, launcher: str, steps: int, **options: Any) -> dict[int, float]:
    """Let a run go on to `steps`; its losses."""
    with live_run(folder, launcher, steps=steps, **options) as run:
        assert run.wait_until_gone() == 0, run.output()
    assert status(folder) == "finished", run.output()
    return losses(folder)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
