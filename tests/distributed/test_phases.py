"""A run in phases goes on exactly, inside a phase and at its end, on the same and on other ranks; and DeepSpeed takes
another accumulation from one step to the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.engine_worker import case_config
from tests.distributed.spawn import run_ranks
from tests.distributed.towers import train_plainly

TARGET = "tests.distributed.phases_worker:several"
MICRO_BATCHES = [1, 2, 4, 4, 1, 2]
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
CASES = [{"stage": 0}, {"stage": 1}, {"stage": 2, "zero": OFFLOAD}, {"stage": 3}]


def test_phases(tmp_path: Path) -> None:
    folder = str(tmp_path)
    whole, again, *accumulated = run_ranks(
        TARGET,
        ranks=2,
        payload=[
            ("run", {"folder": folder, "stage": 1, "save_at": [1, 2, 3]}),
            ("run", {"folder": folder, "stage": 1, "from": 2, "workers": 1}),
            ("accumulation", {"cases": CASES, "micro_batches": MICRO_BATCHES}),
        ],
        timeout=240,
    )[0]
    assert [len(step["ids"]) for step in whole] == [16, 16, 8, 8, 8, 8]
    assert [step["samples"] for step in whole] == [16, 32, 40, 48, 56, 64]
    assert again == whole[2:]  # losses to the bit, where the layout is the same

    (alone,) = run_ranks(
        TARGET,
        ranks=1,
        payload=[("run", {"folder": folder, "stage": stage, "from": step}) for stage, step in ((3, 1), (0, 3))],
        timeout=240,
    )
    for step, resumed in zip((1, 3), alone, strict=True):
        for mine, other in zip(resumed, whole[step:], strict=True):
            assert mine["ids"] == other["ids"]
            assert (mine["samples"], mine["lr"]) == (other["samples"], other["lr"])
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)

    plain, _ = train_plainly(case_config(CASES[0], 1), MICRO_BATCHES, len(MICRO_BATCHES))
    for case, losses in zip(CASES, accumulated[0], strict=True):
        assert losses == pytest.approx(plain, rel=2e-5), case
