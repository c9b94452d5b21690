"""What the default run reaches on the embedded test set, over three seeds, and the control with shuffled captions.

Runs what `make train` runs, four times (about 15 minutes on 2 cores). The bounds: mean - 2 standard deviations over
the seeds is at least 3 x chance for R@5 both ways and 2 x chance for the 20-category zero-shot; the control lies
within the central 95 % of the binomial distribution of guessing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from intern_trainer.evaluate import binomial_interval

from benchmarks.results import save

REPOSITORY = Path(__file__).resolve().parents[1]
BOUNDS = {"zero_shot/top1": 2.0, "retrieval/image_to_text_R@5": 3.0, "retrieval/text_to_image_R@5": 3.0}
"""Result -> how many times chance it must be."""
RUNS = {f"seed {seed}": [f"train.seed={seed}"] for seed in range(3)} | {"control": ["data.shuffle_captions=true"]}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "figures", help="folder of the four runs")
    parser.add_argument("--again", action="store_true", help="remove runs that are there; default: go on with them")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides for all four runs, for trials")
    chosen = parser.parse_args(arguments)
    entries = {}
    for name, settings in RUNS.items():
        run_dir = chosen.runs / name.replace(" ", "-")
        if chosen.again:
            shutil.rmtree(run_dir, ignore_errors=True)
        train(run_dir, [*settings, *chosen.settings])
        entries[name] = test_entry(run_dir)
    figures = summarise(entries)
    print(table(figures))
    if not chosen.settings:
        print(save("figures", figures))
    return 0 if figures["passed"] else 1


def train(run_dir: Path, settings: list[str]) -> None:
    """One run, as `make train` does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(port)]
    command += ["trainer/run.py", "--ds_config", "configs/ds/zero2.json", f"run.dir={run_dir}", *settings]
    print("+", *command, flush=True)
    subprocess.run(command, cwd=REPOSITORY, check=True)


def test_entry(run_dir: Path) -> dict[str, Any]:
    entries = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    seconds = json.loads((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"]
    return {**[entry for entry in entries if entry["split"] == "test"][-1], "seconds": seconds}


def summarise(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, the control and its interval, for every result; and whether the
    bounds are met."""
    seeds = [entry for name, entry in entries.items() if name != "control"]
    control, rows, passed = entries["control"], {}, True
    for name, chance in control["chance"].items():
        values = [entry["results"][name] for entry in seeds]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        count = control["counts"][f"{name.split('/')[0]}/count"]
        low, high = binomial_interval(chance, count)
        row = {
            "chance": chance, "values": values, "mean": mean, "standard_deviation": deviation,
            "mean_minus_2_deviations_times_chance": (mean - 2 * deviation) / chance,
            "control": control["results"][name], "control_interval": [low, high],
        }  # fmt: skip
        if name in BOUNDS:
            row["bound_times_chance"] = BOUNDS[name]
            row["passed"] = mean - 2 * deviation >= BOUNDS[name] * chance and low <= row["control"] <= high
            passed = passed and row["passed"]
        rows[name] = row
    seconds = {name: entry["seconds"] for name, entry in entries.items()}
    return {"what": __doc__, "counts": control["counts"], "results": rows, "seconds_in_loop": seconds, "passed": passed}


def table(figures: dict[str, Any]) -> str:
    """The README's table."""
    lines = [
        "| test result | chance | 3 seeds: mean ± sd | (mean - 2 sd) / chance | shuffled captions | 95 % of guessing |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in figures["results"].items():
        low, high = row["control_interval"]
        lines.append(
            f"| {name.replace('_', ' ')} | {row['chance']:.1%} | {row['mean']:.1%} ± {row['standard_deviation']:.1%} "
            f"| {row['mean_minus_2_deviations_times_chance']:.1f} | {row['control']:.1%} | {low:.1%} to {high:.1%} |"
        )
    return "\n".join(lines)
