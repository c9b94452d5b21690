"""Hangs, bad steps, spikes and ranks that part ways, on real ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.spawn import RanksError, run_ranks

STAGES = [0, 3]


class Ended:
    """What was left by two ranks that went through all cases, the last of which ended them."""

    def __init__(self, folder: Path) -> None:
        offload = {"zero": {"offload_optimizer": {"device": "cpu"}}, "precision": "bf16"}
        cases = {
            "discarded": [{"stage": 1}, {"stage": 1, **offload}, {"stage": 3, "precision": "bf16"}],
            "bad_losses": STAGES,
            "bad_gradients": [[0, 0], [2, 0], [3, 1]],
            "spikes": {"stages": STAGES, "at": 5, "folder": str(folder / "spikes")},
            "traces": [0, 1],
        }
        payload = {"cases": cases, "folder": str(folder)}
        with pytest.raises(RanksError) as ended:
            run_ranks("tests.distributed.guard_worker:all_cases", 2, payload, timeout=300)
        self.folder, self.output = folder, str(ended.value)
        files = [folder / f"{rank}.json" for rank in (0, 1)]
        assert all(file.exists() for file in files), self.output
        self.ranks: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]

    def hang(self, case: str) -> Path:
        return self.folder / case / "hangs/step-00000002"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended(tmp_path_factory.mktemp("guard"))


def test_a_discarded_step_leaves_nothing_behind(ended: Ended) -> None:
    for rank in ended.ranks:
        assert rank["discarded"] == [True] * 6


@pytest.mark.parametrize("stage", STAGES)
def test_bad_losses_are_left_out_and_named(ended: Ended, stage: int) -> None:
    for rank in ended.ranks:
        two, one, without = (rank["bad_losses"][str(stage)][name] for name in ("two", "one", "without"))
        assert (two["error"], two["bad"], two["step"]) == ("", 3, 6)
        assert two["weights"] == without["weights"]  # as if those steps had never been
        assert two["losses"]["6"] == without["losses"]["6"]
        assert two["losses"]["5"] == two["losses"]["3"]  # that of the last step which counted
        assert one["error"].startswith("training error: the loss of rank 0 is nan; its samples: towers/4-0/0,")
        assert "first in the input `image`, on rank 1: sample towers/4-1/3; bad steps in a row: 2" in one["error"]
        assert one["step"] == 4


def test_bad_gradients_are_left_out_and_their_module_named(ended: Ended) -> None:
    for rank in ended.ranks:
        *stops, skips = rank["bad_gradients"]
        for stop in stops:
            assert "the gradient norm of step 3 is" in stop["error"]
            assert "first in the gradient in stem.1, on rank 1" in stop["error"]
            assert stop["step"] == 2
        assert (skips["error"], skips["bad"], skips["step"]) == ("", 1, 4)
        (said,) = (line for line in skips["said"] if "left out" in line)
        assert said.startswith("step 3 is left out: the gradient norm of step 3 is")
        assert said.endswith("; first in the gradient in stem.1, on rank 1. 1 in a row, 1 in all")


@pytest.mark.parametrize("stage", STAGES)
def test_a_spike_goes_back_and_leaves_its_samples_out(ended: Ended, stage: int) -> None:
    for rank in ended.ranks:
        found = rank["spikes"][str(stage)]
        assert (found["step"], found["checkpoint"], found["left_out"]) == (5, "step-00000004", [4, 5])
        assert found["left"] == [2, 4]  # the checkpoint of step 5 is gone
        assert list(found["losses"]) == ["7", "8"]
        assert found["losses"]["8"] == found["straight"]["8"]
        assert found["same"]
        assert found["samples"] == 6 * 8


def test_the_first_difference_between_ranks_is_named(ended: Ended) -> None:
    for rank in ended.ranks:
        assert len(rank["traces"]) == 2
        for error in rank["traces"].values():
            assert "call 5 was `image_mixer` on rank 0 and `embedding` on rank 1" in error, error


@pytest.mark.parametrize("case", ["data", "stop"])
def test_a_rank_that_sleeps_is_named_and_all_stacks_are_written(ended: Ended, case: str) -> None:
    line = (ended.hang(case) / "where.txt").read_text()
    assert line.startswith("step 2 hangs, ")
    assert line.endswith(" so far: rank 1 in data.next, rank 0 in all_reduce (agree)\n")
    stacks = [(ended.hang(case) / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert "in agree" in stacks[0]
    assert "_wait_on_rank_1" in stacks[1]


def test_a_rank_that_sleeps_in_a_module_is_named_with_it(ended: Ended) -> None:
    line = (ended.hang("module") / "where.txt").read_text()
    assert "rank 1 in forward of text_mixer.norm" in line
    assert "rank 0 in all_gather of text_mixer.qkv (forward)" in line


def test_a_hang_that_ends_is_told_and_one_that_must_not_be_ends_all_ranks(ended: Ended) -> None:
    assert ended.output.count("step 2 has ended after") == 2  # in data and in module
    assert ended.output.count("(exit code 8)") == 2
    run = json.loads((ended.folder / "stop/run.json").read_text())
    assert run["status"] == "failed"
    assert "rank 1 in data.next" in run["error"]


@pytest.mark.slow
def test_a_whole_run_goes_back_and_its_curve_has_neither_doubles_nor_the_steps_left_out(tmp_path: Path) -> None:
    run_ranks("tests.distributed.guard_worker:whole", 2, str(tmp_path), timeout=300)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [int(record["step"]) for record in records]
    progress = json.loads((tmp_path / "checkpoints/step-00000030/progress.json").read_text())
    left_out = progress["left_out"]
    assert left_out
    assert steps == [step for step in range(1, 31) if step - 1 not in left_out]
    assert records[-1]["skipped_steps"] == len(left_out)
    assert records[-1]["samples"] == 8 * len(steps)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
