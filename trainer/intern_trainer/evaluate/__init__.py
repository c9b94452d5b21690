"""Evaluation on all ranks, with exact counts."""

from __future__ import annotations

from typing import Any

from intern_trainer.config.schema import Benchmark, Config
from intern_trainer.evaluate.features import inference
from intern_trainer.evaluate.metrics import binomial_interval, chance_levels
from intern_trainer.evaluate.retrieval import evaluate_retrieval
from intern_trainer.evaluate.zero_shot import evaluate_zero_shot
from intern_trainer.ranks import Ranks


def run(forward: Any, benchmark: Benchmark, config: Config, ranks: Ranks) -> dict[str, float]:
    """All evaluations of `benchmark`, on all ranks together; the same results on every rank.

    Args:
        forward: an `Engine` or a `TwoTower`, called with keyword tensors; put into evaluation mode for the time.

    Returns:
        by name: `<name>/top1`, `top5`, `mean_per_class`, `classes`, `count` of each zero-shot set;
            `<name>/image_to_text_R@1|5|10`,
        `text_to_image_R@1|5|10`, `count` of each retrieval set. Fractions, not per cent.

    Raises:
        DataError: a set that cannot be read. TrainingError: features that are not finite.
    """
    results: dict[str, float] = {}
    with inference(forward):
        for zero_shot in benchmark.zero_shot:
            results |= evaluate_zero_shot(forward, zero_shot, config, ranks)
        for retrieval in benchmark.retrieval:
            results |= evaluate_retrieval(forward, retrieval, config, ranks)
    return results


__all__ = ["binomial_interval", "chance_levels", "run"]
