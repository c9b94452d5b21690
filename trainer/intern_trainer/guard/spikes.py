"""When a loss is a spike: against its running mean and deviation."""

from __future__ import annotations

import math

WINDOW = 20
"""Steps that the running mean is about as old as, and that it takes before the first judgement. Short: the loss falls
fast at first, and a mean that lags behind would hide a spike."""


def is_spike(loss: float, statistics: dict[str, float], deviations: float) -> bool:
    """More than so many standard deviations above the mean."""
    if statistics.get("steps", 0) < WINDOW:
        return False
    return loss > statistics["mean"] + deviations * math.sqrt(statistics["variance"])


def followed(loss: float, statistics: dict[str, float]) -> dict[str, float]:
    """The statistics with one more loss: plain mean and variance at first, then with weights that fade over `WINDOW`
    steps (West's update)."""
    steps, mean, variance = (statistics.get(key, 0) for key in ("steps", "mean", "variance"))
    weight = 1 / min(steps + 1, WINDOW)
    change = loss - mean
    return {
        "steps": steps + 1,
        "mean": mean + weight * change,
        "variance": (1 - weight) * (variance + weight * change * change),
    }
