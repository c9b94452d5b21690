"""The kernels of `normalise` against plain torch in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from intern_kernels.channel_sums import with_channel_sums
from intern_kernels.launch import Launch, counting, instead
from intern_kernels.normalise import normalise
from intern_kernels.normalise import reference as plain
from intern_kernels.normalise.op import normalise_backward, normalise_forward
from intern_kernels.position_moments import with_position_moments
from torch import Tensor

from tests.unit.kernels.checking import Case, assert_not_finite_alike, compare, covering, noise
from tests.unit.kernels.norms import FORMS, norm_inputs


def _inputs(
    form: str, b: int = 2, h: int = 3, w: int = 5, c: int = 24, dtype: torch.dtype = torch.float32, branch: bool = False
) -> dict[str, Any]:
    x_bhwc = noise(b, h, w, c, dtype=dtype, seed=1, scale=1.5, shift=0.5)
    inputs = {"x_bhwc": x_bhwc, **norm_inputs(form, b, h, w, c, dtype)}
    if branch:
        inputs |= {"residual_bhwc": noise(b, h, w, c, dtype=dtype, seed=6), "factor_b": torch.tensor([1.25, 0.0])[:b]}
    return inputs


@pytest.mark.parametrize("case", covering(form=FORMS, act=("none", "gelu", "gelu_tanh"), branch=(False, True)), ids=str)
def test_equals_plain_torch(case: Case) -> None:
    inputs = _inputs(case["form"], case.b, case.h, case.w, case.c, case.dtype, case["branch"])
    compare(normalise, plain.normalise, inputs | {"act": case["act"]}, case.dtype)


def test_with_sums_of_its_own_map_it_is_batch_normalisation() -> None:
    def ours(x_bhwc: Tensor, weight_c: Tensor, bias_c: Tensor) -> Tensor:
        origin_c = torch.full((24,), 0.3)
        x_bhwc, sums = with_channel_sums(x_bhwc, origin_c)
        away_c, square_c = sums / x_bhwc.shape[:-1].numel()
        rstd_c = torch.rsqrt(square_c - away_c**2 + 1e-5)
        return normalise(x_bhwc, origin_c + away_c, rstd_c, weight_c, bias_c)

    def torchs(x_bhwc: Tensor, weight_c: Tensor, bias_c: Tensor) -> Tensor:
        y_bchw = F.batch_norm(x_bhwc.permute(0, 3, 1, 2), None, None, weight_c, bias_c, training=True, eps=1e-5)
        return y_bchw.permute(0, 2, 3, 1)

    inputs = _inputs("channel")
    compare(ours, torchs, {name: inputs[name] for name in ("x_bhwc", "weight_c", "bias_c")}, torch.float32)


def test_with_moments_of_its_own_map_it_is_layer_normalisation() -> None:
    def ours(x_bhwc: Tensor, weight_c: Tensor, bias_c: Tensor) -> Tensor:
        return normalise(*with_position_moments(x_bhwc, 1e-5), weight_c, bias_c)

    def torchs(x_bhwc: Tensor, weight_c: Tensor, bias_c: Tensor) -> Tensor:
        return F.layer_norm(x_bhwc, (24,), weight_c, bias_c, 1e-5)

    inputs = _inputs("position")
    compare(ours, torchs, {name: inputs[name] for name in ("x_bhwc", "weight_c", "bias_c")}, torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_ops_keep_their_word(form: str) -> None:
    inputs = _inputs(form, branch=True)
    x, *norm, residual, factor = inputs.values()
    torch.library.opcheck(normalise_forward, (x, *norm, "gelu", residual, factor))
    frozen = [tensor if tensor is None else tensor.detach() for tensor in (x, x, *norm)]
    torch.library.opcheck(normalise_backward, (*frozen, "gelu", factor, True, form != "none", form == "position"))


def test_compiles_without_a_break() -> None:
    inputs = _inputs("channel")

    def step(*args: Tensor) -> Tensor:
        return normalise(*args, act="gelu")

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    want = torch.autograd.grad(step(*inputs.values()).sum(), list(inputs.values()))
    got = torch.autograd.grad(compiled(*inputs.values()).sum(), list(inputs.values()))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["x_bhwc", "residual_bhwc"])
def test_refuses_what_does_not_lie_channels_last(name: str) -> None:
    inputs = _inputs("channel", branch=True)
    inputs[name] = inputs[name].detach().transpose(1, 2)
    with pytest.raises(ValueError, match=f"{name.removesuffix('_bhwc')} has shape .* call .*contiguous"):
        normalise(**inputs)


def test_takes_a_gradient_that_is_one_number_expanded() -> None:
    inputs = _inputs("channel")
    (got,) = torch.autograd.grad(normalise(**inputs).sum(), [inputs["x_bhwc"]])
    (want,) = torch.autograd.grad(plain.normalise(**inputs).sum(), [inputs["x_bhwc"]])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("act", ["none", "gelu_tanh"])
@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_strange_numbers_stay_where_they_belong(form: str, act: str, strange: float) -> None:
    def both(op: Any) -> list[Tensor]:
        inputs = _inputs(form, c=40)  # 40 channels: a block of 32 that is whole, or one of 64 that is not
        with torch.no_grad():
            inputs["x_bhwc"][1, 2, 3, 39] = strange
        out = op(**inputs, act=act)
        asked = [tensor for tensor in inputs.values() if tensor is not None]
        return [out, *torch.autograd.grad(out.sum(), asked)]

    got, want = both(normalise), both(plain.normalise)
    assert not got[0].isfinite().all()
    assert_not_finite_alike(got, want)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_launches_nothing(form: str) -> None:
    inputs = _inputs(form, b=0)
    with counting() as launches:
        out = normalise(**inputs)
        asked = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        gradients = torch.autograd.grad(out.sum(), list(asked.values()))
    assert not launches
    assert out.shape == (0, 3, 5, 24)
    assert all(
        gradient.eq(0).all() and gradient.shape == asked[n].shape for n, gradient in zip(asked, gradients, strict=True)
    )


def test_twice_gives_the_same_bits() -> None:
    inputs = _inputs("channel", h=14, w=14, dtype=torch.bfloat16)
    first, second = (
        torch.autograd.grad(normalise(**inputs, act="gelu").square().sum(), list(inputs.values())) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        (["x_bhwc"], {"dx_ptr"}),
        (["weight_c"], {"partial_ptr"}),
        (["x_bhwc", "mean"], {"dx_ptr", "row_ptr"}),
        (["residual_bhwc"], None),
    ],
)
def test_makes_no_gradient_that_nobody_asks_for(asked: list[str], made: set[str] | None) -> None:
    inputs = {name: tensor.detach() for name, tensor in _inputs("position", branch=True).items()}
    leaves = [inputs[name].requires_grad_() for name in asked]
    launches: list[Launch] = []
    with instead(launches.append):
        torch.autograd.grad(normalise(**inputs).sum(), leaves)
    backward = [launch for launch in launches if launch.name == "normalise_backward"]
    assert len(backward) == (made is not None)
    for launch in backward:
        given = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
        assert {name for name in ("dx_ptr", "partial_ptr", "row_ptr") if given[name] is not None} == made
