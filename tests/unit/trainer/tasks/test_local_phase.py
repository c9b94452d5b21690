"""The whole local phase, small: from a run of the first phase to its probes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from intern_trainer import checkpoint
from intern_trainer.cli import main

from tests.unit.trainer.doubles import ONE_RANK

SMALL = [
    "model.image_size=32", "model.embed_dim=16", "model.text={width: 16, layers: 1, heads: 2, context_length: 8}",
    "train.global_batch=16", "train.threads=1", "data.lanes=4", "data.workers=0", "log.every=1",
    "optim.schedule.warmup_steps=0", "evaluate.validation={}", "evaluate.test={}", "checkpoint.keep_best=0",
]  # fmt: skip


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_from_a_run_of_the_first_phase_to_probes(tmp_path: Path) -> None:
    recipes = Path(__file__).parents[4] / "configs" / "stage1"
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", "--config", str(recipes / "debug.yaml"), f"run.dir={first}", "train.steps=2", *SMALL]) == 0
    local = ["train", "--config", str(recipes / "local_debug.yaml"), f"init.from={first}", f"run.dir={second}", *SMALL]
    assert main([*local, "train.steps=8", "optim.lr=3e-3"]) == 0
    found = records(second)
    assert all(math.isfinite(value) for record in found for value in record.values() if isinstance(value, float))
    assert found[-1]["variance"] < 0.8 * found[0]["variance"]  # it learns to spread the channels
    names = set(checkpoint.CheckpointReader(checkpoint.newest_good(second, ONE_RANK)).names("param"))
    before = set(checkpoint.CheckpointReader(checkpoint.newest_good(first, ONE_RANK)).names("param"))
    assert before < names
    assert all(name.startswith("heads.") for name in names - before)
    for task in ("segmentation", "detection"):
        sizes = ["--train", "6", "--test", "4", "--steps", "2"]
        assert main(["probe", str(second), "--task", task, *sizes]) == 0
    entries = json.loads((second / "probes.json").read_text())
    assert [entry["task"] for entry in entries] == ["segmentation", "detection"]
    assert all(0 <= value <= 1 for entry in entries for value in entry["results"].values())
    assert entries[0]["step"] == 8
