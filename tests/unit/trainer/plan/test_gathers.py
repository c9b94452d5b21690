"""Gathers of ZeRO-3 in alternating backward passes, against those counted on gloo ranks."""

from __future__ import annotations

import pytest
from intern_trainer.config.schema import Config, Parallel
from intern_trainer.plan.gathers import backward_gathers


@pytest.mark.parametrize(
    ("schedule", "chunks", "stage", "micro_batches", "counted"),
    [
        ("1f1b", 1, 0, 1, None),
        ("1f1b", 1, 0, 2, 2),
        ("1f1b", 1, 0, 4, 4),
        ("1f1b", 1, 1, 4, None),
        ("gpipe", 1, 0, 4, 2),
        ("interleaved", 2, 0, 4, 3),
    ],
)
def test_gathers_are_those_that_were_counted(
    schedule: str, chunks: int, stage: int, micro_batches: int, counted: float | None
) -> None:
    parallel = Parallel.model_validate({"pipeline": 2, "schedule": schedule, "chunks": chunks})
    config = Config().model_copy(update={"parallel": parallel})
    assert backward_gathers(config, stage, micro_batches) == counted


def test_without_a_pipeline_each_backward_pass_follows_its_forward_pass() -> None:
    assert backward_gathers(Config(), 0, 4) is None
