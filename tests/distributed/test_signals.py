"""Requests to stop, by a signal to a rank or its launcher, or the launcher's end: saved, no orphans, and it goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.distributed.live_runs import finish, live_run, losses, saved_steps, status

NEVER = 1_000_000
"""Steps between checkpoints: what is saved, is saved because of the signal."""


def stop(folder: Path, launcher: str, to: str | int, number: signal.Signals, **options: int) -> int:
    """Start (or go on with) the run, send the signal after some steps, and see it saved and gone; the exit code."""
    before = max(losses(folder), default=0)
    with live_run(folder, launcher, every=NEVER, **options) as run:
        run.wait_for_step(before + 3)
        if to == "terminal":  # Ctrl-C reaches the whole foreground process group
            os.killpg(run.process.pid, number)
        else:
            target = run.process if to == "launcher" else run.rank(int(to))
            target.send_signal(number)
        code = run.wait_until_gone()
        reached = max(losses(folder))
        assert reached >= before + 3
        assert saved_steps(folder)[-1] == reached, run.output()
        assert status(folder) == "unfinished", run.output()
        assert "The same command goes on from there" in run.output()
    return code


def test_python_torchrun_and_deepspeed_one_after_another(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert stop(folder, "torchrun", 1, signal.SIGUSR1) == 0
    stop(folder, "deepspeed", "launcher", signal.SIGKILL)
    assert stop(folder, "python", 0, signal.SIGINT, ranks=1) == 0
    assert sorted(losses(folder)) == list(
        range(1, saved_steps(folder)[-1] + 1)
    )  # each went on where the one before stopped


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("launcher", "to"),
    [("python", 0), ("torchrun", 0), ("torchrun", "launcher"), ("deepspeed", 1), ("deepspeed", "launcher")],
)
def test_each_signal(tmp_path: Path, launcher: str, to: str | int, number: signal.Signals) -> None:
    ranks = 1 if launcher == "python" else 2
    code = stop(tmp_path / "run", launcher, to, number, ranks=ranks)
    assert code == 0 or to == "launcher"  # a launcher that was signalled says so, whatever its ranks return


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "torchrun", "deepspeed"])
def test_ctrl_c(tmp_path: Path, launcher: str) -> None:
    stop(tmp_path / "run", launcher, "terminal", signal.SIGINT, ranks=1 if launcher == "python" else 2)


@pytest.mark.slow
def test_torchrun_killed(tmp_path: Path) -> None:
    stop(tmp_path / "run", "torchrun", "launcher", signal.SIGKILL)


@pytest.mark.slow
def test_the_run_that_was_stopped_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        stop(folder, "torchrun", "launcher", number)
    steps = max(losses(folder)) + 2
    assert finish(folder, "torchrun", steps) == finish(tmp_path / "reference", "torchrun", steps)
