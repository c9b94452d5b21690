"""The kernels of `norm_act_depthwise` against plain torch in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from intern_kernels.norm_act_depthwise import norm_act_depthwise
from intern_kernels.norm_act_depthwise import reference as plain
from torch import Tensor

from tests.unit.kernels.checking import Case, compare, covering, noise
from tests.unit.kernels.norms import FORMS, norm_inputs


def _inputs(
    form: str,
    b: int = 2,
    h: int = 5,
    w: int = 6,
    c: int = 24,
    dtype: torch.dtype = torch.float32,
    origin: bool = True,
    **options: Any,
) -> dict[str, Any]:
    inputs = {
        "x_bhwc": noise(b, h, w, c, dtype=dtype, seed=1, scale=1.5, shift=0.5),
        **norm_inputs(form, b, h, w, c, dtype),
        "kernel_9c": noise(9, c, dtype=dtype, seed=7, scale=0.4),
        "origin_c": noise(c, dtype=torch.float32, seed=8, scale=0.2).detach() if origin else None,
    }
    return inputs | {"act": "gelu_tanh"} | options


def _leaves(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad}


@pytest.mark.parametrize(
    "case",
    covering(form=FORMS, act=("none", "gelu", "gelu_tanh"), stride=(1, 2), origin=(True, False)),
    ids=str,
)
def test_equals_plain_torch(case: Case) -> None:
    options = {name: case[name] for name in ("act", "stride", "origin")}
    inputs = _inputs(case["form"], case.b, case.h, case.w, case.c, case.dtype, **options)
    print(compare(norm_act_depthwise, plain.norm_act_depthwise, inputs, case.dtype))
