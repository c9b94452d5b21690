"""What the local phase does for dense tasks: probes of frozen image towers on scenes, over three seeds.

untrained  the debug recipe's fresh weights: what a probe finds of itself; a probe says something where `first` is above
first      the debug recipe, stage 1's first phase
longer     from there, the steps, pictures and crops of the local recipe with the contrastive loss alone
local      from there, the local recipe

The local phase is worth its steps where `local` is above `longer` in the probes, and keeps what `first` knows of
captions. Twelve runs and 24 probes, about an hour on 2 quiet cores; what is there and finished is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import REPOSITORY, SEEDS, is_finished, test_entry, train
from benchmarks.results import save

FIRST, LOCAL = "configs/stage1/debug.yaml", "configs/stage1/local_debug.yaml"
FRESH = ["train.steps=1", "optim.lr=1e-12", "optim.schedule={warmup_steps: 0, min_lr: 0}"]
RUNS = {
    "untrained": (FIRST, FRESH),
    "first": (FIRST, []),
    "longer": (LOCAL, ["task=contrastive"]),
    "local": (LOCAL, []),
}
PROBES = {"segmentation": ("mIoU", "foreground_IoU"), "detection": ("mAP", "AP50", "objects_AP50")}
TEST = ("retrieval/image_to_text_R@5", "retrieval/text_to_image_R@5", "zero_shot/top1")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "local", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default: 0 1 2")
    parser.add_argument("--first", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the first phase alone")
    parser.add_argument("--probe", nargs="*", default=[], metavar="OPTION=VALUE", help="of the probes: steps=50, say")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the second phases, for trials")
    chosen = parser.parse_intermixed_args(arguments)
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in RUNS}
    for seed in chosen.seeds:
        first = chosen.runs / f"first-{seed}"
        for name, (recipe, settings) in RUNS.items():
            run_dir = chosen.runs / f"{name}-{seed}"
            more = chosen.first if recipe == FIRST else [f"init.from={first.resolve()}", *chosen.settings]
            if not is_finished(run_dir):
                train(run_dir, recipe, [f"train.seed={seed}", *more, *settings])
            for figure, value in results(run_dir, seed, chosen.probe).items():
                figures[name].setdefault(figure, []).append(value)
    print(table(figures))
    if not (chosen.settings or chosen.first or chosen.probe):
        print(save("local", {"what": __doc__, "seeds": chosen.seeds, "results": figures}))
    return 0


def results(run_dir: Path, seed: int, options: list[str]) -> dict[str, float]:
    """The probes' figures of a run, and some of its test evaluation. Every run of a seed sees the same scenes."""
    found: dict[str, float] = {}
    kept: list[dict[str, Any]] = []
    for task, names in PROBES.items():
        command = [
            sys.executable,
            "trainer/run.py",
            "probe",
            str(run_dir.resolve()),
            "--task",
            task,
            "--seed",
            str(seed),
        ]
        command += [f"--{option}" for option in options]
        print("+", *command, flush=True)
        subprocess.run(command, cwd=REPOSITORY, check=True)
        kept = json.loads((run_dir / "probes.json").read_text(encoding="utf-8"))
        found |= {name: [entry for entry in kept if entry["task"] == task][-1]["results"][name] for name in names}
    test = test_entry(run_dir)["results"]
    return found | {name: test[name] for name in TEST}


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation over the seeds; and of the differences between `local` and `longer`, seed by seed."""
    lines = [f"| figure | {' | '.join(figures)} | local - longer |", "| --- |" + " --- |" * (len(figures) + 1)]
    for name in figures["first"]:
        gains = [local - longer for local, longer in zip(figures["local"][name], figures["longer"][name], strict=True)]
        cells = [_mean(values[name]) for values in figures.values()]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {_mean(gains)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{deviation}"
