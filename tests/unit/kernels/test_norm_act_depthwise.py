"""The kernels of `norm_act_depthwise` against plain torch in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from intern_kernels.launch import Launch, counting, instead
from intern_kernels.norm_act_depthwise import norm_act_depthwise
from intern_kernels.norm_act_depthwise import reference as plain
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.kernels.checking import Case, assert_not_finite_alike, compare, covering, noise
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


@pytest.mark.parametrize("stride", [1, 2])
def test_long_columns_are_divided(stride: int) -> None:
    inputs = _inputs("position", b=1, h=17, w=3, c=8, stride=stride)
    launches: list[Launch] = []
    with instead(launches.append):
        norm_act_depthwise(**inputs)
    (launch,) = launches
    given = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    assert given["parts"] > 1
    assert given["parts"] * given["height"] > given["out_h"], "the last part is to be a shorter one"
    compare(norm_act_depthwise, plain.norm_act_depthwise, inputs, torch.float32)


@pytest.mark.parametrize("used", ["y", "sums"])
def test_either_result_may_go_unused(used: str) -> None:
    def one(op: Any) -> Any:
        return lambda **inputs: op(**inputs)[0 if used == "y" else 1]

    compare(one(norm_act_depthwise), one(plain.norm_act_depthwise), _inputs("channel"), torch.float32)


@pytest.mark.parametrize("origin", [True, False])
def test_the_map_is_read_for_its_sums_alone(origin: bool) -> None:
    inputs = _inputs("channel", origin=origin)
    launches: list[Launch] = []
    with instead(launches.append):
        y_bhwc, sums = norm_act_depthwise(**inputs)
        torch.autograd.grad(y_bhwc.sum() + sums.sum(), list(_leaves(inputs).values()))
    given = dict(zip(launches[-1].kernel.arg_names, launches[-1].arguments, strict=False))
    assert (given["y_ptr"] is not None) == origin


def test_a_mean_far_from_zero_costs_the_sums_no_digits() -> None:
    inputs = _inputs("none", h=7, w=7, act="none")
    inputs["kernel_9c"] = torch.zeros(9, 24).index_fill_(0, torch.tensor(4), 1.0)
    inputs["x_bhwc"] = noise(2, 7, 7, 24, dtype=torch.float32, seed=1, shift=1000.0)
    inputs["origin_c"] = torch.full((24,), 1000.0)
    compare(norm_act_depthwise, plain.norm_act_depthwise, inputs, torch.float32)


def test_sums_are_of_the_map_as_it_is_stored() -> None:
    y_bhwc, sums = norm_act_depthwise(**_inputs("channel", dtype=torch.bfloat16))
    exact_nc = y_bhwc.double().flatten(0, -2) - _inputs("channel")["origin_c"]
    torch.testing.assert_close(
        sums.double(), torch.stack([exact_nc.sum(0), exact_nc.square().sum(0)]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("form", FORMS)
def test_ops_keep_their_word(form: str) -> None:
    inputs = _inputs(form, b=1, h=2, w=2, c=8)
    x, *norm, kernel, origin, act = inputs.values()
    torch.library.opcheck(torch.ops.intern.norm_act_depthwise.default, (x, *norm, act, kernel, 2, origin))
    x, *norm, kernel = (tensor if tensor is None else tensor.detach() for tensor in (x, *norm, kernel))
    wants = (True, form != "position", form != "none", form == "position")
    torch.library.opcheck(
        torch.ops.intern.norm_act_depthwise_backward.default,
        (x, x, origin, torch.ones(2, 8), x, *norm, act, kernel, 1, *wants),
    )


def test_compiles_without_a_break() -> None:
    inputs = _inputs("channel")
    leaves = _leaves(inputs)

    def step(leaves: dict[str, Tensor]) -> Tensor:
        y_bhwc, sums = norm_act_depthwise(**inputs | leaves)
        return y_bhwc.sum() + sums.square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    want = torch.autograd.grad(step(leaves), list(leaves.values()))
    got = torch.autograd.grad(compiled(leaves), list(leaves.values()))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["x_bhwc", "kernel_9c"])
def test_refuses_what_does_not_lie_channels_last(name: str) -> None:
    inputs = _inputs("channel", h=5, w=5)
    inputs[name] = inputs[name].detach().repeat_interleave(2, -1)[..., ::2]
    with pytest.raises(ValueError, match=f"{name.split('_')[0]} has shape .* call .*contiguous"):
        norm_act_depthwise(**inputs)


@pytest.mark.parametrize("stride", [0, 3])
def test_refuses_other_strides(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride is {stride}.*1 or 2"):
        norm_act_depthwise(**_inputs("none", stride=stride))


def test_takes_a_gradient_that_is_one_number_expanded() -> None:
    inputs = _inputs("channel")
    (got,) = torch.autograd.grad(norm_act_depthwise(**inputs)[0].sum(), [inputs["x_bhwc"]])
    (want,) = torch.autograd.grad(plain.norm_act_depthwise(**inputs)[0].sum(), [inputs["x_bhwc"]])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_strange_numbers_stay_where_they_belong(form: str, stride: int, strange: float) -> None:
    def both(op: Any) -> list[Tensor]:
        inputs = _inputs(form, h=7, w=7, c=40, stride=stride)  # a block of 64 channels that is not whole
        with torch.no_grad():
            inputs["x_bhwc"][1, 3, 3, 39] = strange
        y_bhwc, sums = op(**inputs)
        return [y_bhwc, sums, *torch.autograd.grad(y_bhwc.sum(), list(_leaves(inputs).values()))]

    got, want = both(norm_act_depthwise), both(plain.norm_act_depthwise)
    assert not got[0].isfinite().all()
    assert_not_finite_alike(got, want)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_launches_nothing(form: str) -> None:
    inputs = _inputs(form, b=0)
    leaves = _leaves(inputs)
    with counting() as launches:
        y_bhwc, sums = norm_act_depthwise(**inputs, stride=2)
        gradients = torch.autograd.grad(y_bhwc.sum() + sums.sum(), list(leaves.values()))
    assert not launches
    assert y_bhwc.shape == (0, 3, 3, 24)
    assert torch.equal(sums, torch.zeros(2, 24))
    assert all(
        gradient.eq(0).all() and gradient.shape == leaf.shape
        for leaf, gradient in zip(leaves.values(), gradients, strict=True)
    )


def test_twice_gives_the_same_bits() -> None:
    inputs = _inputs("channel", h=9, dtype=torch.bfloat16)

    def run() -> list[Tensor]:
        y_bhwc, sums = norm_act_depthwise(**inputs)
        leaves = list(_leaves(inputs).values())
        return [y_bhwc, sums, *torch.autograd.grad(y_bhwc.square().sum() + sums.square().sum(), leaves)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize(
    ("form", "asked", "made"),
    [
        ("channel", ["x_bhwc"], {"dx_ptr"}),
        ("channel", ["weight_c"], {"partial_ptr"}),
        ("channel", ["mean"], {"partial_ptr"}),
        ("channel", ["kernel_9c"], {"dkernel_ptr"}),
        ("position", ["x_bhwc", "mean"], {"dx_ptr", "row_ptr"}),
        ("position", ["bias_c", "kernel_9c"], {"partial_ptr", "dkernel_ptr"}),
    ],
)
def test_makes_no_gradient_that_nobody_asks_for(form: str, asked: list[str], made: set[str]) -> None:
    inputs = _inputs(form)
    for name, tensor in _leaves(inputs).items():
        tensor.requires_grad_(name in asked)
    launches: list[Launch] = []
    with instead(launches.append):
        torch.autograd.grad(norm_act_depthwise(**inputs)[0].sum(), [inputs[name] for name in asked])
    given = dict(zip(launches[-1].kernel.arg_names, launches[-1].arguments, strict=False))
    outputs = {"dx_ptr", "dkernel_ptr", "partial_ptr", "row_ptr"}
    assert {name for name in outputs if given[name] is not None} == made


def test_its_products_are_counted() -> None:
    inputs = _inputs("none", stride=2)
    with FlopCounterMode(display=False) as flops, instead(lambda launch: None):
        y_bhwc, _ = norm_act_depthwise(**inputs)
        torch.autograd.grad(y_bhwc.sum(), list(_leaves(inputs).values()))
    assert flops.get_total_flops() == 3 * 18 * y_bhwc.numel()
