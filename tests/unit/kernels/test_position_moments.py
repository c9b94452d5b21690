"""The kernels of `position_moments` against plain torch in fp64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from intern_kernels.launch import counting
from intern_kernels.position_moments import reference as plain
from intern_kernels.position_moments import with_position_moments
from intern_kernels.position_moments.op import position_moments, position_moments_backward
from torch import Tensor

from tests.unit.kernels.checking import Case, assert_not_finite_alike, compare, covering, noise

EPS = 1e-5


def _x(b: int = 2, h: int = 3, w: int = 5, c: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(b, h, w, c, dtype=dtype, seed=1, scale=2.0, shift=0.5)


@pytest.mark.parametrize("case", covering(), ids=str)
def test_equals_plain_torch(case: Case) -> None:
    inputs = {"x_bhwc": _x(case.b, case.h, case.w, case.c, case.dtype), "eps": EPS}
    compare(with_position_moments, plain.with_position_moments, inputs, case.dtype)


def test_chunks_of_channels_far_apart_are_joined_without_loss() -> None:
    x_bhwc = noise(1, 1, 3, 1000, dtype=torch.float32, seed=1).detach()
    x_bhwc[..., :512] += 300.0
    x_bhwc[..., 0] = 5000.0
    _, *got = with_position_moments(x_bhwc, EPS)
    _, *want = plain.with_position_moments(x_bhwc.double(), EPS)
    torch.testing.assert_close([moment.double() for moment in got], want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("used", [used for used in itertools.product([True, False], repeat=3) if any(used)])
def test_one_pass_brings_back_whatever_gradients_there_are(used: tuple[bool, ...]) -> None:
    x_bhwc = _x()

    def gradient(op: Any) -> Tensor:
        outputs = op(x_bhwc, EPS)
        (dx,) = torch.autograd.grad(
            sum(out.square().sum() for out, counts in zip(outputs, used, strict=True) if counts), [x_bhwc]
        )
        return dx

    with counting() as launches:
        got = gradient(with_position_moments)
    torch.testing.assert_close(got, gradient(plain.with_position_moments))
    assert launches["position_moments_backward"] == any(used[1:])


def test_ops_keep_their_word() -> None:
    x = _x().detach()
    moments = position_moments(x, EPS)
    torch.library.opcheck(position_moments, (x, EPS))
    torch.library.opcheck(position_moments_backward, (x, x, *moments, *moments))
    torch.library.opcheck(position_moments_backward, (None, x, *moments, None, moments[1]))


def test_compiles_without_a_break() -> None:
    def step(x_bhwc: Tensor) -> Tensor:
        x_bhwc, mean_bhw, rstd_bhw = with_position_moments(x_bhwc, EPS)
        return ((x_bhwc - mean_bhw[..., None]) * rstd_bhw[..., None]).pow(3).sum()

    x_bhwc = _x()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    (got,) = torch.autograd.grad(compiled(x_bhwc), [x_bhwc])
    (want,) = torch.autograd.grad(step(x_bhwc), [x_bhwc])
    torch.testing.assert_close(got, want)


def test_refuses_what_does_not_lie_channels_last() -> None:
    with pytest.raises(ValueError, match=r"x has shape .* call x.contiguous"):
        with_position_moments(_x().detach().transpose(1, 2), EPS)


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_strange_numbers_stay_in_their_position(strange: float) -> None:
    x_bhwc = _x(c=40).detach()
    x_bhwc[1, 2, 3, 39] = strange
    _, *got = with_position_moments(x_bhwc, EPS)
    _, *want = plain.with_position_moments(x_bhwc, EPS)
    assert_not_finite_alike(got[1], want[1])
    assert got[0].isfinite().sum() == got[0].numel() - 1


def test_an_empty_batch_launches_nothing() -> None:
    x_bhwc = _x(b=0)
    with counting() as launches:
        outputs = with_position_moments(x_bhwc, EPS)
        (dx,) = torch.autograd.grad(sum(out.sum() for out in outputs), [x_bhwc])
    assert not launches
    assert [tuple(tensor.shape) for tensor in (*outputs, dx)] == [(0, 3, 5, 24), (0, 3, 5), (0, 3, 5), (0, 3, 5, 24)]


def test_twice_gives_the_same_bits() -> None:
    x_bhwc = _x(c=600, dtype=torch.bfloat16)
    first, second = (torch.stack(with_position_moments(x_bhwc, EPS)[1:]) for _ in range(2))
    assert torch.equal(first, second)
