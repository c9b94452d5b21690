"""The last n and the best k stay; what is not whole is neither counted nor deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from intern_trainer.checkpoint import Progress, retain, save

from tests.unit.trainer.checkpoint.fakes import ALONE, CONFIG, FakeEngine, fresh_state


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in range(1, 7):
        save(FakeEngine(fresh_state()), Progress(step), tmp_path, ALONE, CONFIG)
    return tmp_path


def left(run: Path) -> list[int]:
    assert not list((run / "checkpoints").glob(".*"))
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_last_and_best(run: Path) -> None:
    scores = {1: 0.2, 2: 0.9, 3: float("nan"), 4: 0.9, 6: 0.1}
    removed = retain(at(run, 6), keep_last=1, keep_best=2, scores=scores, ranks=ALONE)
    assert removed == [at(run, step) for step in (1, 3, 5)]
    assert left(run) == [2, 4, 6]


def test_the_later_of_equals_is_the_best(run: Path) -> None:
    retain(at(run, 6), keep_last=1, keep_best=1, scores={2: 0.9, 4: 0.9}, ranks=ALONE)
    assert left(run) == [4, 6]


def test_damaged_ones_do_not_count(run: Path) -> None:
    for step in (5, 4):
        os.truncate(at(run, step) / "rank-00000-weights-0000.safetensors", 10)
    retain(at(run, 6), keep_last=2, keep_best=1, scores={4: 0.9, 1: 0.1}, ranks=ALONE)
    assert left(run) == [1, 3, 4, 5, 6]


def test_later_steps_that_were_passed_over_do_not_count(run: Path) -> None:
    retain(at(run, 3), keep_last=2, keep_best=0, scores={}, ranks=ALONE)
    assert left(run) == [2, 3, 4, 5, 6]


def test_nothing_goes_when_the_new_one_is_not_whole(run: Path) -> None:
    (at(run, 6) / "manifest.json").unlink()
    assert retain(at(run, 6), keep_last=1, keep_best=0, scores={}, ranks=ALONE) == []
    assert left(run) == [1, 2, 3, 4, 5, 6]
