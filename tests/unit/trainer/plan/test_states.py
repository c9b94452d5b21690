"""Bytes of training state, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from intern_trainer.plan import states
from intern_trainer.plan.model import Weights
from intern_trainer.plan.settings import ZERO_DEFAULTS, Settings

WEIGHTS = Weights(groups=((100, 51, 30), (7,)), frozen=(40,), largest_module=130, norm_widths=(), buffer_bytes=64)
TRAINED = 100 + 51 + 30 + 7
SETTINGS = Settings(
    stage=1, weight=2, gradient=2, moments=2, average=False, bucket=10, two_buckets=True, contiguous=True,
    sub_group=1000, hpz=1, prefetch=20, persistent=10, live=1000, reuse=1000, summed_whole=False,
    offload_optimizer=False, offload_weights=False,
)  # fmt: skip


def test_zero_0_keeps_all_in_fp32() -> None:
    fp32 = replace(SETTINGS, stage=0, weight=4, gradient=4)
    assert states.resident(WEIGHTS, fp32, 4) == {
        "parameters": 4 * (TRAINED + 40), "moments": 8 * TRAINED, "buffers": 64,
    }  # fmt: skip
    assert states.in_backward(WEIGHTS, fp32, 4) == {"gradients": 4 * TRAINED}
    assert states.in_update(WEIGHTS, fp32, 4) == {"gradients": 4 * TRAINED, "buckets": 4 * TRAINED}
    assert states.in_update(WEIGHTS, fp32, 1)["buckets"] == 0


def test_zero_1_divides_flat_groups() -> None:
    """181 and 7 elements are padded to multiples of 2 x 4 ranks: 184 and 8, parts of 46 and 2."""
    with_average = replace(SETTINGS, average=True)
    assert states.resident(WEIGHTS, with_average, 4) == {
        "parameters": 2 * (184 + 8 + 40), "fp32 masters": 4 * 48, "moments": 8 * 48, "average": 4 * 48, "buffers": 64,
    }  # fmt: skip
    assert states.in_backward(WEIGHTS, SETTINGS, 4) == {"gradients": 2 * TRAINED, "buckets": 2 * 2 * 10}
    # rank 2 has elements 92 to 137: of the first two tensors; of the small group every rank has some
    assert states.in_update(WEIGHTS, SETTINGS, 4) == {"gradients": 2 * (151 + 7), "fp32 gradients": 4 * 46}


def test_zero_2_keeps_the_gradients_of_what_its_part_touches() -> None:
    held = states.in_backward(WEIGHTS, replace(SETTINGS, stage=2, two_buckets=False), 4)
    assert held == {"gradients": 2 * (151 + 7), "buckets": 2 * 10}


def test_zero_3_divides_each_tensor() -> None:
    """Parts of 25 + 13 + 8 + 2, and 10 frozen; the tensor of 7 stays whole."""
    settings = replace(SETTINGS, stage=3, hpz=2)
    assert states.resident(WEIGHTS, settings, 4) == {
        "parameters": 2 * (48 + 10), "whole parameters": 2 * 7,
        "gradients": 2 * 48, "buckets": 2 * 10, "fp32 masters": 4 * 48, "moments": 8 * 48, "buffers": 64,
    }  # fmt: skip
    alone = replace(settings, hpz=1)
    assert "whole parameters" not in states.resident(WEIGHTS, alone, 1)
    assert not any(states.in_backward(WEIGHTS, alone, 1).values())
    second = 2 * (50 + 26 + 15 + 4 + 20)
    assert states.in_update(WEIGHTS, settings, 4) == {"second parts (hpZ)": second, "fp32 gradients": 4 * 46}
    assert states.in_update(WEIGHTS, replace(settings, sub_group=3), 4)["fp32 gradients"] == 4 * (3 + 25)


@pytest.mark.parametrize(
    ("live", "reuse", "whole", "kept"),
    [(1000, 1000, 221, 221), (0, 0, 130, 0), (160, 1000, 160, 160), (1000, 20, 170, 10)],
)
def test_zero_3_gathers_no_more_than_is_allowed(live: int, reuse: int, whole: int, kept: int) -> None:
    settings = replace(SETTINGS, stage=3, live=live, reuse=reuse)
    assert states.gathered(WEIGHTS, settings) == whole
    assert states.kept_for_backward(WEIGHTS, settings) == kept


def test_defaults_are_deepspeeds() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = DeepSpeedZeroConfig().model_dump(by_alias=True)
    assert {key: theirs[key] for key in ZERO_DEFAULTS} == ZERO_DEFAULTS
