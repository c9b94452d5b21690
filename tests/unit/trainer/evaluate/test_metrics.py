"""The counts behind the evaluation, against an independent reference and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from intern_trainer.errors import TrainingError
from intern_trainer.evaluate.metrics import binomial_interval, chance_levels, hits, retrieval_ranks, strict_ranks
from torchmetrics.functional.classification import multiclass_accuracy


def test_ranks_equal_a_sorted_reference() -> None:
    torch.manual_seed(0)
    queries, gallery = torch.randn(37, 8), torch.randn(53, 8)
    own = torch.randint(0, 53, (37,))
    scores = (queries @ gallery.T).numpy()
    order = np.argsort(-scores, axis=1)
    expected = [int(np.flatnonzero(order[i] == own[i].item())[0]) + 1 for i in range(37)]
    assert retrieval_ranks(queries, gallery, own).tolist() == expected


@pytest.mark.parametrize("block", [1, 5, 37, 1000])
def test_blocks_do_not_change_the_ranks(block: int) -> None:
    torch.manual_seed(1)
    # small integers: products are exact, so that no rounding hides in the comparison
    queries, gallery = torch.randint(-3, 4, (37, 6)).float(), torch.randint(-3, 4, (50, 6)).float()
    own = torch.arange(37)
    whole = strict_ranks(queries @ gallery.T, own)
    assert torch.equal(retrieval_ranks(queries, gallery, own, block), whole)


def test_ties_count_against_the_model() -> None:
    collapsed = torch.ones(6, 4)
    assert retrieval_ranks(collapsed, collapsed, torch.arange(6)).tolist() == [6] * 6
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert strict_ranks(scores, torch.tensor([0, 0])).tolist() == [2, 1]


def test_features_that_are_not_finite_are_an_error() -> None:
    features = torch.randn(4, 3)
    features[2, 1] = math.nan
    with pytest.raises(TrainingError, match="not finite"):
        retrieval_ranks(features, torch.randn(4, 3), torch.arange(4))


def test_top_k_equals_torchmetrics() -> None:
    torch.manual_seed(2)
    scores, labels = torch.randn(200, 20), torch.randint(0, 20, (200,))
    counts = hits(strict_ranks(scores, labels), (1, 5))
    for k, count in zip((1, 5), counts.tolist(), strict=True):
        expected = multiclass_accuracy(scores, labels, num_classes=20, average="micro", top_k=k)
        assert count / 200 == pytest.approx(float(expected), abs=1e-7)


def test_no_queries() -> None:
    assert retrieval_ranks(torch.zeros(0, 4), torch.randn(3, 4), torch.zeros(0, dtype=torch.long)).tolist() == []


def test_chance_levels() -> None:
    results = {
        "zero_shot/top1": 0.5, "zero_shot/top5": 0.9, "zero_shot/mean_per_class": 0.4,
        "zero_shot/classes": 20.0, "zero_shot/count": 100.0,
        "mine/image_to_text_R@1": 0.1, "mine/text_to_image_R@10": 0.2, "mine/count": 200.0,
    }  # fmt: skip
    assert chance_levels(results) == pytest.approx(
        {
            "zero_shot/top1": 0.05, "zero_shot/top5": 0.25, "zero_shot/mean_per_class": 0.05,
            "mine/image_to_text_R@1": 0.005, "mine/text_to_image_R@10": 0.05,
        }
    )  # fmt: skip


def test_binomial_interval_covers_what_it_says() -> None:
    low, high = binomial_interval(0.05, 200)
    draws = np.random.default_rng(0).binomial(200, 0.05, 200_000) / 200
    assert 0.95 <= np.mean((draws >= low) & (draws <= high)) < 0.985
    assert np.mean(draws < low) <= 0.025
    assert np.mean(draws > high) <= 0.025
    assert binomial_interval(0.5, 1) == (0.0, 1.0)
