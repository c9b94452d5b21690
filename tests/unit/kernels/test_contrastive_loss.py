"""InfoNCE against the definition written out in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from intern_kernels.contrastive_loss import info_nce


def _unit(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


def _by_definition(query: torch.Tensor, key: torch.Tensor, scale: float, first: int) -> float:
    total = 0.0
    for i, q in enumerate(query.tolist()):
        scores = [scale * sum(a * b for a, b in zip(q, k, strict=True)) for k in key.tolist()]
        top = max(scores)
        total += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[first + i]
    return total / len(query)


@pytest.mark.parametrize("first", [0, 3])
def test_value_is_the_definition(first: int) -> None:
    query, key = _unit(4, 8, 0), _unit(9, 8, 1)
    loss, _ = info_nce(query, key, torch.tensor([14.0], dtype=torch.float64), first)
    assert loss.item() == pytest.approx(_by_definition(query, key, 14.0, first), rel=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    query, key = _unit(3, 5, 2).requires_grad_(), _unit(7, 5, 3).requires_grad_()
    scale = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, s: info_nce(q, k, s, 2)[0], (query, key, scale))


def test_hits_count_own_keys_that_score_highest() -> None:
    key = torch.eye(4)
    loss, hits = info_nce(key[[1, 3]], key, torch.tensor([10.0]), 1)
    assert hits.item() == 1  # the first query is its own key 1; the second should be key 2 and is key 3
    assert loss.item() > 4


def test_low_precision_inputs_are_summed_in_fp32() -> None:
    query, key = _unit(8, 64, 4, torch.bfloat16), _unit(32, 64, 5, torch.bfloat16)
    low, _ = info_nce(query, key, torch.tensor([100.0]), 0)
    exact, _ = info_nce(query.double(), key.double(), torch.tensor([100.0], dtype=torch.float64), 0)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=1e-6)
