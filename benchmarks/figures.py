"""What stage 1 reaches with each loss, over three seeds, and the control with shuffled captions.

embedded   the default recipe (what `make train` runs), on the test split: retrieval, and zero-shot among 20 categories
emoji      configs/stage1/emoji.yaml, where `make emoji` was run: trained on Google's drawings; retrieval of Microsoft's
           drawings of trained emoji, and of emoji never seen under any name (held out)

10 runs a data set of 3 to 10 minutes on 2 quiet cores; a run that is there and finished is not made again. The bounds
are for CLIP on the embedded data: mean - 2 standard deviations over the seeds is at least 3 x chance for R@5 both ways
and 2 x chance for the zero-shot; the control lies within the central 95 % of the binomial distribution of guessing.
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
SEEDS = range(3)
LOSSES = {
    "clip": [],
    "siglip": ["loss.kind=siglip"],
    # widths and a queue that fit so few pictures
    "declip": ["loss.kind=declip", "loss.declip={queue: 1024, projector: 256, predictor: 64}"],
}
CONTROL = {"control": ["data.shuffle_captions=true"]}
RECIPES = {"embedded": "configs/stage1/debug.yaml", "emoji": "configs/stage1/emoji.yaml"}
ROWS = {
    "embedded": {"embedded": ("retrieval", "zero_shot/top1")},
    "emoji": {"emoji, other style": ("retrieval", None), "emoji, held out": ("heldout", None)},
}
"""Data -> rows of the table: name of the retrieval test, and the zero-shot figure where there is one."""
DIRECTIONS = {"picture → caption": "image_to_text", "caption → picture": "text_to_image"}
BOUNDS = {"zero_shot/top1": 2.0, "retrieval/image_to_text_R@5": 3.0, "retrieval/text_to_image_R@5": 3.0}
"""Result -> how many times chance CLIP must reach on the embedded data."""

Entry = dict[str, Any]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=(*RECIPES, "all"), default="all", help="default: all that is there")
    parser.add_argument("--losses", choices=tuple(LOSSES), nargs="+", default=list(LOSSES), help="default: all")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "figures", help="folder of the runs")
    parser.add_argument("--again", action="store_true", help="remove runs that are there; default: go on with them")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides for all runs, for trials")
    chosen = parser.parse_intermixed_args(arguments)
    there = [name for name in RECIPES if name != "emoji" or any((REPOSITORY / "data" / "emoji").glob("train-*.tar"))]
    wanted = list(RECIPES) if chosen.data == "all" else [chosen.data]
    figures = {}
    for data in wanted:
        if data not in there:
            print(f"{data} is not there: make {data}", file=sys.stderr)
            continue
        entries = {
            loss: [_run(chosen, data, f"{loss}-seed-{seed}", [*LOSSES[loss], f"train.seed={seed}"]) for seed in SEEDS]
            for loss in chosen.losses
        }
        control = _run(chosen, data, "control", CONTROL["control"])
        figures[data] = summarise(entries, control, BOUNDS if data == "embedded" else {})
    if not figures:
        return 2
    print(table(figures))
    if not chosen.settings and set(chosen.losses) == set(LOSSES):
        for data, found in figures.items():
            print(save("figures" if data == "embedded" else f"figures_{data}", {"what": __doc__, **found}))
    return 0 if all(found["passed"] for found in figures.values()) else 1


def _run(chosen: argparse.Namespace, data: str, name: str, settings: list[str]) -> Entry:
    run_dir = chosen.runs / data / name
    if chosen.again:
        shutil.rmtree(run_dir, ignore_errors=True)
    if not is_finished(run_dir):
        train(run_dir, RECIPES[data], [*settings, *chosen.settings])
    return test_entry(run_dir)


def is_finished(run_dir: Path) -> bool:
    try:
        return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    except FileNotFoundError:
        return False


def train(run_dir: Path, recipe: str, settings: list[str]) -> None:
    """One run, as `make train` does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(port)]
    command += ["trainer/run.py", "--config", recipe, "--ds_config", "configs/ds/zero2.json"]
    command += [f"run.dir={run_dir.resolve()}", *settings]
    print("+", *command, flush=True)
    subprocess.run(command, cwd=REPOSITORY, check=True)


def test_entry(run_dir: Path) -> Entry:
    entries = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    seconds = json.loads((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"]
    return {**[entry for entry in entries if entry["split"] == "test"][-1], "seconds": seconds}


def summarise(entries: dict[str, list[Entry]], control: Entry, bounds: dict[str, float]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of every result of each loss, the control beside its interval, and
    whether CLIP meets the bounds."""
    losses: dict[str, Any] = {}
    for loss, seeds in entries.items():
        losses[loss] = {"seconds_in_loop": [entry["seconds"] for entry in seeds], "results": {}}
        for name, chance in control["chance"].items():
            values = [entry["results"][name] for entry in seeds]
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            losses[loss]["results"][name] = {
                "values": values,
                "mean": mean,
                "standard_deviation": deviation,
                "mean_minus_2_deviations_times_chance": (mean - 2 * deviation) / chance,
            }
    guesses = {}
    for name, chance in control["chance"].items():
        low, high = binomial_interval(chance, control["counts"][f"{name.split('/')[0]}/count"])
        guesses[name] = {"result": control["results"][name], "interval": [low, high]}
    judged = {
        name: {
            "bound_times_chance": bound,
            "passed": losses["clip"]["results"][name]["mean_minus_2_deviations_times_chance"] >= bound
            and guesses[name]["interval"][0] <= guesses[name]["result"] <= guesses[name]["interval"][1],
        }
        for name, bound in bounds.items()
        if "clip" in losses
    }
    return {
        "counts": control["counts"],
        "chance": control["chance"],
        "losses": losses,
        "control": {"seconds_in_loop": control["seconds"], "results": guesses},
        "bounds": judged,
        "passed": all(row["passed"] for row in judged.values()),
    }


def table(figures: dict[str, Any]) -> str:
    """The README's table: a row for each loss on each test, then chance and the control."""
    columns = [f"{name} R@{k}" for name in DIRECTIONS for k in (1, 5)]
    lines = [f"| test | loss | {' | '.join(columns)} | zero-shot top-1 |", "| --- " * (len(columns) + 3) + "|"]
    for data, found in figures.items():
        for row, (retrieval, zero_shot) in ROWS[data].items():
            names = [f"{retrieval}/{direction}_R@{k}" for direction in DIRECTIONS.values() for k in (1, 5)]
            names.append(zero_shot or "")
            title = f"{row}, {found['counts'][f'{retrieval}/count']:,} pairs"
            for loss, one in found["losses"].items():
                lines.append(_line(title, loss, [_spread(one["results"].get(name)) for name in names]))
            lines.append(_line(title, "chance", [_percent(found["chance"].get(name)) for name in names]))
            control = found["control"]["results"]
            lines.append(_line(title, "shuffled captions", [_percent(control.get(n, {}).get("result")) for n in names]))
    return "\n".join(lines)


def _line(title: str, what: str, cells: list[str]) -> str:
    return f"| {title} | {what} | {' | '.join(cells)} |"


def _spread(row: dict[str, float] | None) -> str:
    return "" if row is None else f"{row['mean']:.1%} ± {row['standard_deviation']:.1%}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
