"""The Triton form of cross-covariance attention against its definition in fp64, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from intern_kernels import dispatch
from intern_kernels.cross_covariance_attention import cross_covariance_attention, op, reference
from intern_kernels.launch import counting
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .checking import BOUNDS, Case, assert_not_finite_alike, compare, covering, noise

HEADS = {8: 1, 24: 3, 96: 3, 384: 6, 768: 6, 1000: 20}
"""By width; the widest of each dtype and widths that are no power of two are among them."""


@pytest.fixture(autouse=True)
def forced() -> Iterator[None]:
    dispatch.configure("triton")
    yield
    dispatch.configure()


def _inputs(case: Case) -> dict[str, Tensor]:
    """Slices of one tensor, as the attention of MetaNet makes them; not centred, so that channels correlate."""
    n, heads = case.h * case.w, HEADS[case.c]
    qkv_bnc = noise(case.b, n, 3 * case.c, dtype=case.dtype, seed=0, shift=0.5)
    q, k, v = qkv_bnc.detach().unflatten(-1, (3, heads, -1)).unbind(2)
    temperature = noise(heads, 1, 1, dtype=torch.float32, seed=1, shift=2.0)
    varies = n > 1  # one position is of length one whatever it is: see the test of that
    q, k = q.requires_grad_(varies), k.requires_grad_(varies)
    return {"q": q, "k": k, "v": v.requires_grad_(), "temperature": temperature}


def _op(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    return cross_covariance_attention(q, k, v, temperature)


def _reference(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    return reference.cross_covariance_attention(q, k, v, temperature)


@pytest.mark.parametrize("case", covering(), ids=str)
def test_values_and_gradients(case: Case) -> None:
    inputs = _inputs(case)
    with counting() as launches:
        print(compare(_op, _reference, inputs, case.dtype))
    assert launches == {"xca_forward": 1, "xca_backward": 1}


def _small(n: int = 5, d: int = 6, b: int = 2) -> list[Tensor]:
    """q, k, v of two heads, and their temperature."""
    q, k, v = (noise(b, n, 2, d, dtype=torch.float32, seed=seed, shift=0.5) for seed in (1, 2, 3))
    return [q, k, v, noise(2, 1, 1, dtype=torch.float32, seed=4, shift=2.0)]


def test_one_position_has_a_length_that_does_not_depend_on_it() -> None:
    """A channel of one position is 1 or -1 once it is normalised: no gradient flows to q and k."""
    q, k, v, temperature = _small(n=1)
    cross_covariance_attention(q, k, v, temperature).sum().backward()
    assert q.grad is not None
    assert k.grad is not None
    assert (q.grad * q).abs().max() < BOUNDS[torch.float32]
    assert (k.grad * k).abs().max() < BOUNDS[torch.float32]


def test_a_silent_channel_is_divided_by_a_constant() -> None:
    q, k, v, temperature = _small()
    with torch.no_grad():
        q[..., 0] = 0.0
    compare(_op, _reference, {"q": q, "k": k, "v": v, "temperature": temperature}, torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", [0, 1, 2])
def test_what_is_not_finite_reaches_what_depends_on_it(of: int, value: float) -> None:
    inputs = [x.detach() for x in _small()]
    inputs[of][1, 2, 1, 3] = value
    got = cross_covariance_attention(*inputs)
    assert_not_finite_alike(got, reference.cross_covariance_attention(*inputs))
    assert not got.isfinite().all()


def test_an_empty_batch_is_launched_nothing_for() -> None:
    inputs = _small(b=0)
    with counting() as launches:
        out = cross_covariance_attention(*inputs)
        out.sum().backward()
    assert not launches
    assert out.shape == (0, 5, 2, 6)
    assert inputs[3].grad is not None
    assert not inputs[3].grad.any()


def test_channels_that_are_apart_are_refused() -> None:
    q, k, v, temperature = _small(n=6)
    with pytest.raises(ValueError, match=r"v_bnhe has shape .* strides .* call v_bnhe.contiguous()"):
        cross_covariance_attention(q, k, v.transpose(1, 3), temperature)


def test_heads_beyond_the_registers_are_plain_torch() -> None:
    wide = [torch.ones(1, 2, 1, 65)] * 3 + [torch.ones(1, 1, 1)]
    with pytest.raises(RuntimeError, match=r"heads have 65 channels, and kernels take 64 in torch.float32"):
        cross_covariance_attention(*wide)
    dispatch.configure("auto")
    assert cross_covariance_attention(*wide).shape == (1, 2, 1, 65)


def test_two_runs_are_equal_bit_for_bit() -> None:
    runs = [torch.autograd.grad(cross_covariance_attention(*inputs).sum(), inputs) for inputs in (_small(), _small())]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_nothing_is_kept_or_made_for_gradients_that_nobody_asks_for() -> None:
    with counting() as launches:
        assert cross_covariance_attention(*(x.detach() for x in _small())).grad_fn is None
    assert launches == {"xca_forward": 1}
    q, k, v, temperature = _small()
    cross_covariance_attention(q, k.detach(), v, temperature.detach()).sum().backward()
    assert q.grad is not None
    assert k.grad is None
    assert temperature.grad is None


def test_torch_takes_it_for_an_operator() -> None:
    q, k, v, temperature = _small()
    torch.library.opcheck(op._forward, (q, k, v, temperature.detach().flatten().requires_grad_()))
    grad = torch.ones_like(q)
    torch.library.opcheck(op._backward, [x.detach() for x in (grad, q, k, v, temperature.flatten())])


def test_products_are_counted() -> None:
    with FlopCounterMode(display=False) as counter:
        cross_covariance_attention(*_small(n=5, d=6)).sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 2 * 5 * 2 * 6 * 6
