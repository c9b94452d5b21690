"""One billion parameters, for real, in 24 GiB: trained, saved, resumed on one rank, exported; memory beside the plan.

configs/stage1/1b_cpu.yaml with configs/ds/zero3_cpu_1b.json by the command line that a user types: three steps under
ZeRO-3 on 2 ranks, one more on 1 rank from their checkpoint, its export; and three steps in a pipeline of 2. The debug
model in the place of the large one shows what a rank holds besides. Then metanet_10b, of which only pieces are ever
made.

Nobody else may need much memory of the machine meanwhile: it does not begin where the plan does not fit, and ends
where memory runs short. What it wrote is deleted; figures are for Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from intern_trainer.errors import EnvironmentFault, UserError
from intern_trainer.observe.memory import host_memory, show_bytes

from benchmarks.billion.larger import ten_billion
from benchmarks.billion.watch import Peak, Watched, watch
from benchmarks.results import save

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE, DS_CONFIG = REPOSITORY / "configs/stage1/1b_cpu.yaml", REPOSITORY / "configs/ds/zero3_cpu_1b.json"
RUN = REPOSITORY / "trainer/run.py"
BESIDES, MARGIN = 900 << 20, 1 << 30
"""Bytes that a rank holds besides what a plan counts (Python, PyTorch, DeepSpeed), and that shall stay free."""
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One start of a run in the folder `run`, and its settings beside the recipe's."""

    name: str
    ranks: int
    run: str
    settings: tuple[str, ...] = ()


CASES = (
    Case("ZeRO-3 on 2 ranks", 2, "zero3"),
    Case("resumed on 1 rank", 1, "zero3", ("train.steps=4",)),
    Case("pipeline of 2, ZeRO-3 in the stages", 2, "pipeline", ("parallel.pipeline=2", "train.micro_batch=2")),
)
EXPORT_AFTER = CASES[1]
SMALL = Case("the debug model on 2 ranks", 2, "small", ("model.image=metanet_debug", "train.steps=1"))
SIZES: dict[str, tuple[list[str], list[str]]] = {
    "full": ([], []),
    "debug": (
        ["model.image=metanet_debug"],
        ["model.image=metanet_b7", "model.text.width=256", "model.text.heads=4", "model.text.layers=2"],
    ),
}
"""Overrides of 1b_cpu.yaml and of 10b.yaml."""


@dataclass(frozen=True)
class Planned:
    """Bytes: the peak of each rank, and of a checkpoint. Settings that make a launch cut the model as the plan does
    (by itself it balances for an H100).
    """

    ranks: list[int]
    checkpoint: int
    settings: tuple[str, ...] = ()


def plans_of(cases: Sequence[Case], settings: Sequence[str]) -> list[Planned]:
    """`intern-trainer plan` of each case on this machine's processor."""
    from intern_trainer.cli_plan import plan_recipe
    from intern_trainer.config.load import load_config
    from intern_trainer.plan import Cluster, find_device

    found = []
    for case in cases:
        config = load_config(RECIPE, [*settings, *case.settings], DS_CONFIG)
        plan = plan_recipe(config, Cluster(find_device("cpu", case.ranks), case.ranks, case.ranks))
        ranks = [round(stage.estimate.memory.peak) for stage in plan.stages for _ in stage.ranks]
        cut = (f"parallel.cut={list(plan.cut.pieces)}", f"parallel.text={plan.cut.text}") if plan.cut else ()
        found.append(Planned(ranks, plan.saves.state, cut))
    return found


def check_room(plans: dict[str, Planned], free: int, disk: int) -> None:
    """Args:
    plans: of the cases, by name. free, disk: bytes of memory and of disk that may be used.

    Raises:
        EnvironmentFault: too little of either, and how much it takes.
    """
    for name, planned in plans.items():
        needed = sum(planned.ranks) + len(planned.ranks) * BESIDES + MARGIN
        if needed > free:
            raise EnvironmentFault(
                f"{name} takes {show_bytes(needed)} of memory, {show_bytes(free)} are free",
                f"that is the plan's {show_bytes(sum(planned.ranks))}, {show_bytes(BESIDES)} a rank for its libraries, "
                f"and {show_bytes(MARGIN)} that stay free",
                "end what else runs on this machine, or try it out with --size debug",
            )
    needed = 2 * max(planned.checkpoint for planned in plans.values()) + MARGIN
    if needed > disk:
        raise EnvironmentFault(
            f"the runs take {show_bytes(needed)} of disk, {show_bytes(disk)} are free",
            "a checkpoint is complete before the one before it is deleted, so there must be room for two",
            "free space, or give another --folder",
        )


def train(case: Case, settings: Sequence[str], folder: Path) -> tuple[Watched, list[dict[str, Any]]]:
    """Start a case; its memory, and the records of the steps that it made."""
    metrics = folder / case.run / "metrics.jsonl"
    before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    front: list[str | Path] = [sys.executable]
    if case.ranks > 1:
        front += ["-m", "torch.distributed.run", f"--nproc_per_node={case.ranks}", f"--master_port={port}"]
    command = [*front, RUN, "--config", RECIPE, "--ds_config", DS_CONFIG, f"run.dir={folder / case.run}", *settings]
    watched = watch([*command, *case.settings], REPOSITORY, "rank 0" if case.ranks == 1 else "launcher")
    return watched, [json.loads(line) for line in metrics.read_text().splitlines()[before:]]


def row(watched: Watched, records: list[dict[str, Any]], planned: Planned, besides: int) -> dict[str, Any]:
    """What is kept of a case.

    Args:
        besides: bytes that a rank holds besides the plan's.
    """
    ranks = []
    for rank, plan in enumerate(planned.ranks):
        peak = watched.peaks[f"rank {rank}"]
        ranks.append(
            {
                "plan": plan,
                "measured": peak.anonymous - besides,
                "measured over plan": (peak.anonymous - besides) / plan,
                "anonymous": peak.anonymous,
                "resident": peak.resident,
            }
        )
    return {
        "seconds": watched.seconds,
        "ranks": ranks,
        "steps": [record["step"] for record in records],
        "losses": [record["loss"] for record in records],
        "seconds of a step": [record["step_seconds"] for record in records],
    }


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """In a process of its own, whose memory goes with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {found['seconds']:.0f} s")
    for rank, one in enumerate(found["ranks"]):
        print(
            f"  rank {rank}: {show_bytes(one['measured'])} beside the plan's {show_bytes(one['plan'])}"
            f" ({one['measured over plan']:.1%}); anonymous {show_bytes(one['anonymous'])},"
            f" resident with mapped files {show_bytes(one['resident'])}"
        )
    pairs = zip(found["steps"], found["losses"], found["seconds of a step"], strict=True)
    print("  " + "; ".join(f"step {step}: loss {loss:.4f}, {seconds:.1f} s" for step, loss, seconds in pairs))


def measure(size: str, folder: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    """All parts; `keep` gets the figures so far after each."""
    settings, larger = SIZES[size]
    plans = {case.name: plan for case, plan in zip(CASES, alone(plans_of, CASES, settings), strict=True)}
    check_room(plans, host_memory().free, shutil.disk_usage(folder).free)
    small, _ = train(SMALL, [], folder)
    (planned,) = alone(plans_of, [SMALL], [])
    besides = max(small.peaks[f"rank {rank}"].anonymous - plan for rank, plan in enumerate(planned.ranks))
    figures: dict[str, Any] = {"size": size, "a rank besides the plan's": besides}
    for case in CASES:
        watched, records = train(case, [*settings, *plans[case.name].settings], folder)
        figures[case.name] = row(watched, records, plans[case.name], besides)
        show(case.name, figures[case.name])
        keep(figures)
        if case == EXPORT_AFTER:
            to = folder / "exported"
            export = watch([sys.executable, RUN, "export", folder / case.run, "--to", to], REPOSITORY, "export")
            figures["export"] = exported(export, sum(file.stat().st_size for file in to.glob("*.safetensors")))
            print(f"\nexport: {figures['export']}")
            keep(figures)
        if not any(later.run == case.run for later in CASES[CASES.index(case) + 1 :]):
            shutil.rmtree(folder / case.run)
            shutil.rmtree(folder / "exported", ignore_errors=True)
    figures["10 B"] = alone(ten_billion, larger)
    print("\n10 B:", json.dumps(figures["10 B"], indent=1))
    keep(figures)


def exported(watched: Watched, weights: int) -> dict[str, Any]:
    peaks: dict[str, Peak] = watched.peaks
    return {"seconds": watched.seconds, "bytes": weights, "peaks": {name: vars(peak) for name, peak in peaks.items()}}


def main(arguments: list[str]) -> int:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks billion", description=__doc__, formatter_class=text)
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="debug: small models, to try it out")
    parser.add_argument("--folder", type=Path, help="where the runs go meanwhile; default: the temporary folder")
    chosen = parser.parse_args(arguments)

    def keep(figures: dict[str, Any]) -> None:
        if chosen.size == "full":
            save("billion", figures)

    try:
        with TemporaryDirectory(prefix="billion-", dir=chosen.folder) as folder:
            measure(chosen.size, Path(folder), keep)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return error.exit_code
    return 0
