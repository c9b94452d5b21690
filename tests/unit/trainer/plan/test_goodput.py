"""Young's and Daly's intervals, and that the latter is the best one."""

from __future__ import annotations

import math

import pytest
from intern_trainer.plan.goodput import daly, goodput, young


def test_young() -> None:
    assert young(50, 10_000) == pytest.approx(1000)


def test_daly_is_young_for_rare_failures_and_never_longer_than_they_are_apart() -> None:
    assert daly(60, 1e9) == pytest.approx(young(60, 1e9), rel=1e-3)
    assert daly(50, 10_000) == pytest.approx(1000 * (1 + 0.05 / 3 + 0.0025 / 9) - 50)
    assert daly(300, 100) == 100


@pytest.mark.parametrize(("save", "failures"), [(10, 3600), (60, 7200), (300, 20_000)])
def test_daly_is_the_best_interval(save: float, failures: float) -> None:
    best = goodput(daly(save, failures), save, 120, failures)
    others = [goodput(daly(save, failures) * factor, save, 120, failures) for factor in (0.5, 0.8, 1.25, 2)]
    assert best > max(others)
    searched = max(goodput(interval, save, 120, failures) for interval in range(10, 20_000, 10))
    assert best == pytest.approx(searched, rel=1e-4)


def test_goodput_loses_saves_restarts_and_half_an_interval() -> None:
    interval, save, restart, failures = 1000, 10, 60, 1e6
    lost = save / (interval + save) + (restart + (interval + save) / 2) / failures
    assert goodput(interval, save, restart, failures) == pytest.approx(1 - lost, abs=1e-5)
    assert math.isclose(goodput(1000, 0, 0, 1e12), 1, rel_tol=1e-6)
