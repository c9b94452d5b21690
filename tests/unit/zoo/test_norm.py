"""BatchNorm: against torch's, shared over (simulated) ranks, in half precision, frozen, and recomputed."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from intern_zoo.metanet.norm import BatchNorm, MapLayerNorm, statistics_kept
from torch import nn


def _map(batch: int = 8, seed: int = 0) -> torch.Tensor:
    x = 3.0 + 2.0 * torch.randn(batch, 5, 6, 7, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def _norm() -> BatchNorm:
    norm = BatchNorm(5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(5, generator=generator))
    return norm


def _same_buffers(a: nn.Module, b: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, x), y in zip(a.named_buffers(), b.buffers(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("shared", [False, True])
def test_equals_torchs_batch_norm(shared: bool) -> None:
    ours, theirs = _norm(), nn.BatchNorm2d(5)
    theirs.load_state_dict(ours.state_dict())
    if shared:
        ours.reduce_stats = lambda sums: sums
    x, y = _map().requires_grad_(), _map().requires_grad_()
    for _ in range(3):  # the running mean, about which sums are taken, moves
        ours(x).square().sum().backward()
        theirs(y).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)
    _same_buffers(ours, theirs)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(y))


def test_shared_statistics_equal_those_of_the_whole_batch() -> None:
    """Two uneven halves that share their sums do what one process with the whole batch does, values and gradients."""
    whole, template, x = _norm(), _norm(), _map()
    parts = [part.clone().requires_grad_() for part in x.split([3, 5])]
    local: list[torch.Tensor] = []

    def keep(sums: torch.Tensor) -> torch.Tensor:
        local.append(sums)
        return sums

    for part in parts:
        first = copy.deepcopy(template)
        first.reduce_stats = keep
        first(part)
    assert local[0].shape == (2 * 5 + 1,)
    assert local[0].dtype == torch.float32
    assert [s[-1].item() for s in local] == [3 * 42, 5 * 42]
    ranks = [copy.deepcopy(template) for _ in parts]
    for rank, norm in enumerate(ranks):
        norm.reduce_stats = partial(torch.add, local[1 - rank])
    outputs = torch.cat([norm(part) for norm, part in zip(ranks, parts, strict=True)])
    x.requires_grad_()
    expected = whole(x)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), x.grad, rtol=1e-4, atol=1e-5)
    for norm in ranks:
        _same_buffers(norm, whole)


@pytest.mark.parametrize("shared", [False, True])
def test_half_precision_keeps_fp32_statistics(shared: bool) -> None:
    exact, half = _norm(), copy.deepcopy(_norm()).bfloat16()
    if shared:
        half.reduce_stats = lambda sums: sums
    assert half.weight.dtype == torch.bfloat16
    x = _map().bfloat16()
    y = half(x.requires_grad_())
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    exact(x.float())
    assert half.running_mean.dtype == half.running_var.dtype == torch.float32
    _same_buffers(half, exact)
    half.float().half().to("meta")
    assert half.running_var.dtype == torch.float32


def test_statistics_survive_a_change_of_precision() -> None:
    norm = _norm()
    norm(_map())
    before = norm.running_var.clone()
    assert torch.equal(norm.bfloat16().float().running_var, before)


def test_statistics_are_fp32_where_new_tensors_are_half_precision() -> None:
    """As inside a context that constructs a model sharded and in bf16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        norm = BatchNorm(5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert norm.weight.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32


def test_frozen_statistics_are_used_and_kept() -> None:
    norm = _norm()
    norm(_map())
    kept = copy.deepcopy(norm)
    norm.frozen = True
    norm.reduce_stats = lambda sums: pytest.fail("frozen statistics need no exchange")
    x = _map(seed=3)
    assert torch.equal(norm(x), kept.eval()(x))
    _same_buffers(norm, kept, tolerance=0.0)


@pytest.mark.parametrize("shared", [False, True])
def test_a_second_forward_pass_does_not_count_twice(shared: bool) -> None:
    norm, once = _norm(), _norm()
    if shared:
        norm.reduce_stats = lambda sums: sums
    x = _map()
    first = norm(x)
    with statistics_kept():
        torch.testing.assert_close(norm(x), first, rtol=1e-5, atol=1e-5)
    once(x)
    _same_buffers(norm, once)


def test_zero_init_and_names() -> None:
    assert not BatchNorm(5, zero_init=True).weight.any()
    assert not MapLayerNorm(5, zero_init=True).weight.any()
    assert BatchNorm(5).weight.eq(1).all()
    assert BatchNorm(5).state_dict().keys() == nn.BatchNorm2d(5).state_dict().keys()


def test_map_layer_norm_normalises_channels_at_each_position() -> None:
    x = _map()
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2)
    y = MapLayerNorm(5)(x)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
