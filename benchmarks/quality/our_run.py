"""A run of our trainer as a curve of held-out R@1 over compute."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from intern_trainer.config.load import load_config
from intern_trainer.config.phases import Phases
from intern_trainer.config.schema import Config
from intern_trainer.data import build_train_data
from intern_trainer.ranks import Ranks
from intern_trainer.tasks import build_task
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.quality.curve import Curve

REPOSITORY = Path(__file__).resolve().parents[2]
EVERY = 10
"""Steps between evaluations."""
HELD_OUT = 'evaluate.validation={retrieval: {data: ["embedded:validation", "embedded:test"]}}'
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def settings(seed: int) -> list[str]:
    """What a run has beyond its recipe."""
    keep = ["checkpoint.keep_best=0", "checkpoint.keep_last=1"]
    return [f"train.seed={seed}", HELD_OUT, "evaluate.test={}", f"evaluate.every={EVERY}", f"log.every={EVERY}", *keep]


def score(results: dict[str, float]) -> float:
    """R@1, mean of both directions."""
    return (results["retrieval/image_to_text_R@1"] + results["retrieval/text_to_image_R@1"]) / 2


def curve(recipe: Path, seed: int, run_dir: Path) -> Curve:
    """Train, in a process of its own, unless it is done."""
    kept = run_dir / "curve.json"
    if not kept.is_file():
        command = [sys.executable, "trainer/run.py", "--config", str(recipe), f"run.dir={run_dir}", *settings(seed)]
        print("+", *command, flush=True)
        subprocess.run(command, cwd=REPOSITORY, check=True, env=environment())
        kept.write_text(json.dumps(read(run_dir), indent=1), encoding="utf-8")
    points: Curve = json.loads(kept.read_text(encoding="utf-8"))
    return points


def environment() -> dict[str, str]:
    roots = [str(REPOSITORY / root) for root in ("kernels", "model_zoo", "trainer", ".")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def read(run_dir: Path) -> Curve:
    """The evaluations of a finished run; seconds are those of its steps, without evaluations."""
    config = load_config(run_dir / "config.yaml")
    spent, padded = Spent(config), Spent(unpacked(config))
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [0, *(record["step"] for record in records)]
    taken = [
        record["step_seconds"] * (end - start)
        for record, (start, end) in zip(records, itertools.pairwise(ends), strict=True)
    ]
    seconds = dict(zip(ends[1:], itertools.accumulate(taken), strict=True))
    points = []
    for entry in json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8")):
        if entry["split"] == "validation":
            step = entry["step"]
            points.append(
                {
                    "samples": float(Phases(config).first_sample(step)),
                    "flops": spent.at(step),
                    "padded_flops": padded.at(step),
                    "seconds": seconds[step],
                    "score": score(entry["results"]),
                }
            )
    return points


def unpacked(config: Config) -> Config:
    text = config.model.text.model_copy(update={"pack": False})
    return config.model_copy(update={"model": config.model.model_copy(update={"text": text})})


class Spent:
    """FLOPs of training, counted on the first batches of each phase: captions are as long there as they are."""

    def __init__(self, config: Config, batches: int = 2) -> None:
        self._phases = Phases(config)
        task = build_task(config, ALONE)
        model: Any = task.build_model().train()
        data = build_train_data(
            config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})}), ALONE, task.views
        )
        self._per_sample = []
        for span in self._phases.spans:
            found = [batch for step in itertools.islice(data.batches(span.first_step), batches) for batch in step]
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), counter:
                for batch in found:
                    task.forward(model, batch.to(ALONE.device))
            self._per_sample.append(3 * counter.get_total_flops() / sum(len(batch) for batch in found))
        data.close()

    def at(self, step: int) -> float:
        """Of the steps before `step`."""
        return sum(n * each for n, each in zip(self._phases.samples_by_phase(step), self._per_sample, strict=True))
