"""The kernels of `channel_sums` against plain torch in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from intern_kernels.channel_sums import channel_sums, with_channel_sums
from intern_kernels.channel_sums import reference as plain
from intern_kernels.channel_sums.op import channel_sums_backward
from intern_kernels.launch import counting
from torch import Tensor

from tests.unit.kernels.checking import Case, assert_not_finite_alike, compare, covering, noise


def _inputs(b: int = 2, h: int = 3, w: int = 5, c: int = 24, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    x_bhwc = noise(b, h, w, c, dtype=dtype, seed=1, shift=0.5)
    return {"x_bhwc": x_bhwc, "origin_c": noise(c, dtype=torch.float32, seed=2, scale=0.1, shift=0.5).detach()}


@pytest.mark.parametrize("case", covering(alone=(False, True)), ids=str)
def test_equals_plain_torch(case: Case) -> None:
    inputs = _inputs(case.b, case.h, case.w, case.c, case.dtype)
    bounds = {"0" if case["alone"] else "1": 1e-5}  # sums are fp32, whatever x is
    ops = (channel_sums, plain.channel_sums) if case["alone"] else (with_channel_sums, plain.with_channel_sums)
    compare(*ops, inputs, case.dtype, bounds)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x_bhwc = noise(2, 14, 14, 8, dtype=torch.float32, seed=1, shift=1000.0).detach()
    sums, squares = channel_sums(x_bhwc, torch.full((8,), 1000.0)).double() / 392
    torch.testing.assert_close(squares - sums**2, x_bhwc.double().flatten(0, 2).var(0, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("used", [(True, False), (False, True), (True, True)])
def test_one_pass_brings_back_whatever_gradients_there_are(used: tuple[bool, bool]) -> None:
    inputs = _inputs()

    def gradient(op: Any) -> Tensor:
        outputs = op(**inputs)
        (dx,) = torch.autograd.grad(
            sum(out.square().sum() for out, counts in zip(outputs, used, strict=True) if counts), [inputs["x_bhwc"]]
        )
        return dx

    with counting() as launches:
        got = gradient(with_channel_sums)
    torch.testing.assert_close(got, gradient(plain.with_channel_sums))
    assert launches == {"channel_sums_forward": 1, **({"channel_sums_backward": 1} if used[1] else {})}


def test_ops_keep_their_word() -> None:
    inputs = _inputs()
    x, origin = inputs.values()
    torch.library.opcheck(channel_sums, (x, origin))
    for grad in (None, x.detach()):
        torch.library.opcheck(channel_sums_backward, (grad, x.detach(), origin, torch.ones(2, 24)))


def test_compiles_without_a_break() -> None:
    inputs = _inputs()

    def step(x_bhwc: Tensor, origin_c: Tensor) -> Tensor:
        x_bhwc, sums = with_channel_sums(x_bhwc, origin_c)
        return x_bhwc.square().sum() + sums.square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    (got,) = torch.autograd.grad(compiled(**inputs), [inputs["x_bhwc"]])
    (want,) = torch.autograd.grad(step(**inputs), [inputs["x_bhwc"]])
    assert torch.equal(got, want)


def test_refuses_what_does_not_lie_channels_last() -> None:
    inputs = _inputs()
    with pytest.raises(ValueError, match=r"x has shape .* call x.contiguous"):
        channel_sums(inputs["x_bhwc"].detach().transpose(1, 2), inputs["origin_c"])


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_strange_numbers_stay_in_their_channel(strange: float) -> None:
    inputs = _inputs(c=40)
    with torch.no_grad():
        inputs["x_bhwc"][1, 2, 3, 39] = strange
    assert_not_finite_alike(channel_sums(**inputs), plain.channel_sums(**inputs))
    assert channel_sums(**inputs)[:, :39].isfinite().all()


def test_an_empty_batch_launches_nothing() -> None:
    inputs = _inputs(b=0)
    with counting() as launches:
        x_bhwc, sums = with_channel_sums(**inputs)
        (dx,) = torch.autograd.grad(x_bhwc.sum() + sums.sum(), [inputs["x_bhwc"]])
    assert not launches
    assert dx.shape == x_bhwc.shape == (0, 3, 5, 24)
    assert torch.equal(sums, torch.zeros(2, 24))


def test_twice_gives_the_same_bits() -> None:
    inputs = _inputs(h=14, w=14, dtype=torch.bfloat16)
    assert torch.equal(channel_sums(**inputs), channel_sums(**inputs))
