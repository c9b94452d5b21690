"""The contrastive losses against their definitions written out in fp64, and their memory by the allocator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from intern_kernels.contrastive_loss import info_nce, log_sums, sigmoid_loss
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

BLOCKS = [1, 4, 5, 100]
"""Single keys; blocks that divide the 12 keys, that do not, and that hold all."""


def _unit(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


def _inputs(b: int = 4, g: int = 12) -> list[Tensor]:
    """Queries, keys, scale, bias."""
    scalars = [torch.tensor([value], dtype=torch.float64) for value in (14.0, -3.0)]
    return [x.requires_grad_() for x in (_unit(b, 8, 0), _unit(g, 8, 1), *scalars)]


def _info_nce_by_definition(query: Tensor, key: Tensor, scale: float, first: int) -> float:
    total = 0.0
    for i, q in enumerate(query.tolist()):
        scores = [scale * sum(a * b for a, b in zip(q, k, strict=True)) for k in key.tolist()]
        top = max(scores)
        total += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[first + i]
    return total / len(query)


def _sigmoid_by_definition(query: Tensor, key: Tensor, scale: float, bias: float, first: int) -> float:
    total = 0.0
    for i, q in enumerate(query.tolist()):
        for j, k in enumerate(key.tolist()):
            z = scale * sum(a * b for a, b in zip(q, k, strict=True)) + bias
            total += math.log1p(math.exp(-z if j == first + i else z))
    return total / len(query)


def _same_gradients(loss: Tensor, dense: Tensor, inputs: list[Tensor]) -> None:
    got, want = (torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True) for value in (loss, dense))
    for ours, theirs in zip(got, want, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("first", [0, 3, 8])
def test_info_nce_is_the_definition(first: int, block: int) -> None:
    query, key, scale, _ = _inputs()
    loss, _ = info_nce(query, key, scale, first, block)
    assert loss.item() == pytest.approx(_info_nce_by_definition(query, key, 14.0, first), rel=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("first", [0, 3, 12])
def test_sigmoid_loss_is_the_definition(first: int, block: int) -> None:
    query, key, scale, bias = _inputs()
    loss, _ = sigmoid_loss(query, key, scale, bias, first, block)  # 12: no query's own key is among these
    assert loss.item() == pytest.approx(_sigmoid_by_definition(query, key, 14.0, -3.0, first), rel=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_are_those_of_the_whole_score_matrix(block: int) -> None:
    query, key, scale, bias = inputs = _inputs()
    z, own = scale * query @ key.t(), torch.arange(3, 7)
    _same_gradients(info_nce(query, key, scale, 3, block)[0], torch.nn.functional.cross_entropy(z, own), inputs)
    signs = torch.full_like(z, -1.0)
    signs[torch.arange(4), own] = 1.0
    dense = -torch.nn.functional.logsigmoid(signs * (z + bias)).sum() / 4
    _same_gradients(sigmoid_loss(query, key, scale, bias, 3, block)[0], dense, inputs)


@pytest.mark.parametrize("block", BLOCKS)
def test_both_directions_come_from_one_pass(block: int) -> None:
    """Any mixture of the sums, with the gradients of the whole matrix."""
    query, key, scale, _ = inputs = _inputs()
    row_w, column_w, own_w = _unit(1, 4, 5)[0], _unit(1, 12, 6)[0], _unit(1, 4, 7)[0]
    sums = log_sums(query, key, scale, 3, block)
    z = scale * query @ key.t()
    row, column, own = z.logsumexp(1), z.logsumexp(0), z[torch.arange(4), torch.arange(3, 7)]
    for got, want in ((sums.row_b, row), (sums.column_g, column), (sums.own_b, own)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    mixed = sums.row_b @ row_w + sums.column_g @ column_w + sums.own_b @ own_w
    dense = row @ row_w + column @ column_w + own @ own_w
    _same_gradients(mixed, dense, inputs)


def test_a_loss_that_is_scaled_has_scaled_gradients() -> None:
    inputs = _inputs()
    for loss in (info_nce(*inputs[:3], 0, 5)[0], sigmoid_loss(*inputs, 0, 5)[0]):
        once, thrice = (torch.autograd.grad(value, inputs[:3], retain_graph=True) for value in (loss, 3 * loss))
        for one, three in zip(once, thrice, strict=True):
            torch.testing.assert_close(3 * one, three)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_hits_count_own_keys_that_score_highest(block: int) -> None:
    key, scale = torch.eye(4), torch.tensor([10.0])
    loss, hits = info_nce(key[[1, 3]], key, scale, 1, block)
    assert hits.item() == 1  # the first query is its own key 1; the second should be key 2 and is key 3
    assert loss.item() > 4
    assert sigmoid_loss(key[[1, 3]], key, scale, torch.zeros(1), 1, block)[1].item() == 1
    _, hits = info_nce(torch.ones(4, 4), torch.ones(4, 4), scale, 0, block)
    assert hits.item() == 1  # features that have all become one know nothing


def test_large_scores_do_not_overflow() -> None:
    query, key, scale = _unit(4, 8, 2, torch.float32), _unit(12, 8, 3, torch.float32), torch.tensor([1e4])
    for loss in (info_nce(query, key, scale, 0, 5)[0], sigmoid_loss(query, key, scale, torch.zeros(1), 0, 5)[0]):
        assert loss.isfinite()


def test_what_is_not_a_number_stays_so() -> None:
    query, key, scale = _unit(4, 8, 2), _unit(12, 8, 3), torch.tensor([10.0])
    query[2, 3] = math.nan
    assert info_nce(query, key, scale, 0, 5)[0].isnan()
    assert sigmoid_loss(query, key, scale, torch.zeros(1), 0, 5)[0].isnan()


def test_low_precision_inputs_are_summed_in_fp32() -> None:
    query, key = _unit(8, 64, 4, torch.bfloat16), _unit(32, 64, 5, torch.bfloat16)
    scale, bias = torch.tensor([100.0]), torch.tensor([-10.0])
    low, _ = info_nce(query, key, scale, 0, 7)
    exact, _ = info_nce(query.double(), key.double(), scale.double(), 0)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=1e-6)
    low, _ = sigmoid_loss(query, key, scale, bias, 0, 7)
    exact, _ = sigmoid_loss(query.double(), key.double(), scale.double(), bias.double(), 0)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=1e-6)


Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _dense(query: Tensor, key: Tensor, scale: Tensor, block: int) -> Tensor:
    return torch.nn.functional.cross_entropy(scale * query @ key.t(), torch.arange(len(query)))


def _both(query: Tensor, key: Tensor, scale: Tensor, block: int) -> Tensor:
    sums = log_sums(query, key, scale, 0, block)
    return sums.row_b.sum() + sums.column_g.sum() - sums.own_b.sum()


LOSSES: dict[str, Loss] = {
    "info_nce": lambda query, key, scale, block: info_nce(query, key, scale, 0, block)[0],
    "both": _both,
    "sigmoid": lambda query, key, scale, block: sigmoid_loss(query, key, scale, torch.zeros(1), 0, block)[0],
}


def _peak_bytes(loss: Loss, b: int, g: int, block: int) -> int:
    """Most bytes that the allocator held at once in value and gradients, beyond the inputs."""
    query, key, scale = _unit(b, 8, 0, torch.float32), _unit(g, 8, 1, torch.float32), torch.ones(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(query.requires_grad_(), key.requires_grad_(), scale.requires_grad_(), block).backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert peak > 4 * 8 * (b + g)  # the gradients at least: the allocator was watched
    return peak


@pytest.mark.parametrize("loss", [*LOSSES, "dense"])
def test_memory_is_of_the_block_and_not_of_the_score_matrix(loss: str) -> None:
    """With the local batch, memory grows as b x block; with the keys, by their gradients alone."""
    small, wide = (_peak_bytes(LOSSES.get(loss, _dense), 128, g, 64) for g in (1024, 4096))
    tall = _peak_bytes(LOSSES.get(loss, _dense), 256, 1024, 64)
    of_blocks = tall <= 2.2 * small and tall <= 6 * 4 * 256 * 64 + 4 * 4 * 8 * (256 + 1024)
    of_keys = wide - small <= 3 * 4 * 8 * (4096 - 1024)
    assert (of_blocks and of_keys) == (loss != "dense"), (small, wide, tall)
