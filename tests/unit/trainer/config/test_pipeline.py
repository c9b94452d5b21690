"""Rules of a pipeline that need neither ranks nor a model, and those of the world size."""

from __future__ import annotations

from typing import Any

import pytest
from intern_trainer.config import ds
from intern_trainer.config.checks import batch_plan, check, check_world
from intern_trainer.config.load import load_config
from intern_trainer.config.pipeline import data_ranks
from intern_trainer.config.schema import Config


def config(parallel: dict[str, Any], **others: Any) -> Config:
    train = {"global_batch": 64, "micro_batch": 4} | others.pop("train", {})
    return Config.model_validate({"parallel": parallel, "train": train, "data": {"lanes": 4}, **others})


WRONG = [
    ({"chunks": 2}, {}, "parallel.chunks with parallel.pipeline=1"),
    ({"cut": [3, 4]}, {}, "parallel.cut with parallel.pipeline=1"),
    ({"schedule": "interleaved", "chunks": 2}, {}, "parallel.schedule=interleaved with parallel.pipeline=1"),
    ({"pipeline": 2, "chunks": 2}, {}, "parallel.schedule is 1f1b and parallel.chunks is 2"),
    ({"pipeline": 2, "schedule": "interleaved"}, {}, "parallel.schedule is interleaved and parallel.chunks is 1"),
    ({"pipeline": 2, "cut": [3, 4, 5]}, {}, "parallel.cut has 3 pieces for 2 stage(s) of 1 chunk(s)"),
]


@pytest.mark.parametrize(("parallel", "others", "found"), WRONG, ids=[found for _, _, found in WRONG])
def test_what_cannot_be_is_told(parallel: dict[str, Any], others: dict[str, Any], found: str) -> None:
    (error,) = check(config(parallel, **others))
    assert error.found == found


@pytest.mark.parametrize(
    "parallel",
    [{}, {"pipeline": 4, "schedule": "gpipe"}, {"pipeline": 2, "schedule": "interleaved", "chunks": 2, "cut": [1] * 4}],
)
def test_what_can_be_is_accepted(parallel: dict[str, Any]) -> None:
    assert check(config(parallel)) == []


def test_stages_divide_the_world() -> None:
    (error,) = check_world(config({"pipeline": 4}), 6)
    assert error.found == "parallel.pipeline 4 on 6 rank(s)"
    assert "parallel.pipeline=3" in error.fix


def test_a_stages_ranks_divide_the_batch() -> None:
    """32 ranks in 4 stages: 8 that share 64 samples."""
    piped = config({"pipeline": 4})
    assert check_world(piped, 32) == []
    assert data_ranks(piped, 32) == 8
    assert batch_plan(piped, 8).accumulation == 2
    assert ds.effective(piped, 8)["train_batch_size"] == 64
    (error,) = check_world(config({"pipeline": 2}), 6)  # 3 data-parallel ranks
    assert "64 over 3 ranks" in error.found


def test_hpz_divides_a_stages_ranks() -> None:
    zero = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 4}}
    piped = config({"pipeline": 4}, ds=zero)
    assert ds.agree(zero, piped, data_ranks(piped, 16)) == []
    (error,) = ds.agree(zero, piped, data_ranks(piped, 8))
    assert "zero_hpz_partition_size is 4 on 2 ranks" in error.found


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_offload_is_refused_in_a_pipeline(key: str) -> None:
    zero = {"zero_optimization": {"stage": 3, key: {"device": "cpu"}}}
    (error,) = ds.agree(zero, config({"pipeline": 2}, ds=zero), 2)
    assert key in error.found
    assert ds.agree(zero, config({}, ds=zero), 2) == []


def test_interleaved_takes_micro_batches_in_groups() -> None:
    def found(micro: int) -> list[str]:
        piped = config({"pipeline": 4, "schedule": "interleaved", "chunks": 2}, train={"micro_batch": micro})
        return [error.found for error in check_world(piped, 8)]

    assert found(4) == []
    (told,) = found(16)
    assert told == "parallel.schedule is interleaved with 2 micro-batches a step in 4 stages"


def test_few_micro_batches_are_no_error() -> None:
    assert check_world(config({"pipeline": 4}), 64) == []


def test_the_keys_are_read_from_the_command_line() -> None:
    loaded = load_config(overrides=["parallel.pipeline=2", "parallel.cut=[8, 7]", "parallel.text=first"])
    assert loaded.parallel.cut == [8, 7]
