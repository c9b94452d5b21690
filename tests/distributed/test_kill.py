"""SIGKILL at any moment, also inside a save: the run goes on as if nothing had been, to the bit."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.live_runs import finish, live_run, losses, saved_steps


def die_inside_a_save(folder: Path, launcher: str, **options: Any) -> None:
    """Kill all when a file of an unfinished checkpoint appears; again where the save was faster than the kill."""
    if list((folder / "checkpoints").glob(".tmp-step-*")):
        return  # the kill before this one did already
    for _ in range(5):
        with live_run(folder, launcher, **options) as run:
            run.wait_for(".tmp-step-*/rank-*")
            run.kill()
        if list((folder / "checkpoints").glob(".tmp-step-*")):
            return
        shutil.rmtree(folder)
    pytest.fail("no kill fell inside a save")


def interrupted_and_not(tmp_path: Path, launcher: str, after: int, **options: Any) -> None:
    folder = tmp_path / "run"
    with live_run(folder, launcher, **options) as run:
        run.wait_for_step(after)
        run.kill()
    die_inside_a_save(folder, launcher, **options)
    reached = max(losses(folder))
    steps = max([reached, *saved_steps(folder)]) + 3
    interrupted = finish(folder, launcher, steps, **options)
    assert not list((folder / "checkpoints").glob(".*"))
    assert sorted(interrupted) == list(range(1, steps + 1))
    assert interrupted == finish(tmp_path / "reference", launcher, steps, **options)


def test_killed_at_a_step_and_inside_a_save(tmp_path: Path) -> None:
    after = random.Random(0).randint(6, 14)
    interrupted_and_not(tmp_path, "torchrun", after, stage=2, background="always")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_killed_under_each_stage(tmp_path: Path, stage: int) -> None:
    interrupted_and_not(tmp_path, "torchrun", after=random.Random(stage).randint(1, 23), stage=stage)


@pytest.mark.slow
def test_killed_in_one_process_that_waits_for_its_saves(tmp_path: Path) -> None:
    interrupted_and_not(tmp_path, "python", after=7, stage=0, ranks=1, background="never")
