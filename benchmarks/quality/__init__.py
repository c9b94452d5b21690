"""Compute to equal held-out R@1: the fast recipe and open_clip's own trainer against plain training.

Plain training is the default recipe (`configs/stage1/debug.yaml`); the fast one `debug_fast.yaml`, over as many
samples; open_clip's trainer (`open_clip_train.main`, a process of its own) gets the same towers, data, batch,
optimizer, learning rate and steps. All three are judged by our evaluator on the pairs that no one trains on
(validation and test together, since more pairs make less noise), R@1 averaged over both directions, every few steps.

The level of a seed is the R@1 that plain training of that seed ends with. Compute is counted, not timed: FLOPs of the
forward pass of real training batches at the size of their phase, times three, until a curve first reaches the level.
Curves are smoothed (mean of an evaluation and its neighbours) and interpolated, all by the same rule.

About 3 minutes a run on 2 quiet cores, 9 runs a data set; a run that is there is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.quality import open_clip_run, our_run
from benchmarks.quality.curve import Curve, final, first_reached
from benchmarks.results import save

REPOSITORY = Path(__file__).resolve().parents[2]
GOAL = 0.6
RECIPES = {"embedded": ("debug", "debug_fast")}
"""Data set -> plain and fast recipe."""
SEEDS = (0, 1, 2)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=sorted(RECIPES), default="embedded")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "quality", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    chosen = parser.parse_args(arguments)
    folder = (chosen.runs / chosen.data).resolve()
    plain, fast = (REPOSITORY / "configs" / "stage1" / f"{name}.yaml" for name in RECIPES[chosen.data])
    seeds = {}
    for seed in chosen.seeds:
        curves = {
            "plain": our_run.curve(plain, seed, folder / f"plain-{seed}"),
            "fast": our_run.curve(fast, seed, folder / f"fast-{seed}"),
            "open_clip": open_clip_run.curve(plain, seed, folder / f"open_clip-{seed}"),
        }
        seeds[seed] = judge(curves)
        print(f"seed {seed}: level {seeds[seed]['level']:.1%}", flush=True)
    figures = summarise(seeds)
    print(table(figures))
    if tuple(chosen.seeds) == SEEDS:
        name = "quality" if chosen.data == "embedded" else f"quality_{chosen.data}"
        print(save(name, figures))
    return 0 if figures["passed"] else 1


def judge(curves: dict[str, Curve]) -> dict[str, Any]:
    """What each method spends until the level of this seed, beside what it ends with."""
    level = final(curves["plain"])
    rows = {}
    for name, points in curves.items():
        rows[name] = {
            "final": final(points),
            "flops": first_reached(points, level, "flops"),
            "flops_without_packing": first_reached(points, level, "padded_flops"),
            "samples": first_reached(points, level, "samples"),
            "seconds": first_reached(points, level, "seconds"),
            "curve": points,
        }
    return {"level": level, "methods": rows}


def summarise(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Ratios to the others, a seed at a time, with mean and standard deviation; None where the level is not reached."""
    ratios: dict[str, Any] = {}
    for name, key, other in (
        ("fast / plain, FLOPs", "flops", "plain"),
        ("fast / open_clip, FLOPs", "flops", "open_clip"),
        ("fast / plain, FLOPs without packing", "flops_without_packing", "plain"),
        ("fast / plain, samples", "samples", "plain"),
        ("fast / plain, seconds", "seconds", "plain"),
        ("fast / open_clip, seconds", "seconds", "open_clip"),
    ):
        values = [_ratio(row["methods"]["fast"][key], row["methods"][other][key]) for row in seeds.values()]
        known = [value for value in values if value is not None]
        complete = len(known) == len(values)
        ratios[name] = {
            "values": values,
            "mean": statistics.mean(known) if complete else None,
            "standard_deviation": statistics.stdev(known) if complete and len(known) > 1 else None,
        }
    goals = [ratios[f"fast / {other}, FLOPs"]["mean"] for other in ("plain", "open_clip")]
    passed = goals[0] is not None and goals[0] <= GOAL and (goals[1] is None or goals[1] <= GOAL)
    return {"what": __doc__, "goal": GOAL, "ratios": ratios, "seeds": seeds, "passed": passed}


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or theirs is None else mine / theirs


def table(figures: dict[str, Any]) -> str:
    """The README's table, and below it what each method ends with."""
    lines = ["| compute to equal held-out R@1 | each seed | mean ± sd |", "| --- | --- | --- |"]
    for name, row in figures["ratios"].items():
        each = ", ".join("not reached" if value is None else f"{value:.2f}" for value in row["values"])
        mean = "" if row["mean"] is None else f"{row['mean']:.2f}"
        deviation = "" if row["standard_deviation"] is None else f" ± {row['standard_deviation']:.2f}"
        lines.append(f"| {name} | {each} | {mean}{deviation} |")
    for method in ("plain", "fast", "open_clip"):
        finals = [row["methods"][method]["final"] for row in figures["seeds"].values()]
        spent = [row["methods"][method]["curve"][-1]["flops"] for row in figures["seeds"].values()]
        shown = ", ".join(f"{value:.1%}" for value in finals)
        lines.append(f"{method}: ends with R@1 {shown} after {statistics.mean(spent) / 1e12:.2f} TFLOP")
    return "\n".join(lines)
