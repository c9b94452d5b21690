"""Picture size and batch by samples seen: which step belongs to which phase, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from intern_trainer.config.checks import batch_plan, check, check_world
from intern_trainer.config.phases import Phases, Span
from intern_trainer.config.schema import Config
from intern_trainer.optim import learning_rate

THREE = [
    {"until": 0.5, "image_size": 32, "global_batch": 64},
    {"until": 0.8, "image_size": 48, "micro_batch": 8},
]


def config(phases: Any = (), lanes: int = 16, **train: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"image_size": 64},
            "data": {"lanes": lanes},
            "train": {"steps": 100, "global_batch": 32, "phases": phases, **train},
            "optim": {"lr": 1.0, "schedule": {"warmup_steps": 10}},
        }
    )


def test_a_run_without_phases_is_one() -> None:
    phases = Phases(config())
    assert phases.spans == (Span(64, 32, None, 0, 0, 100),)
    assert (phases.steps, phases.samples, phases.first_sample(7)) == (100, 3200, 224)


def test_phases_end_at_their_share_of_the_samples_and_the_rest_is_as_the_model_says() -> None:
    phases = Phases(config(THREE))
    assert phases.spans == (
        Span(32, 64, None, 0, 0, 25),
        Span(48, 32, 8, 25, 1600, 30),
        Span(64, 32, None, 55, 2560, 20),
    )
    assert (phases.steps, phases.samples) == (75, 3200)
    assert [phases.at(step).image_size for step in (0, 24, 25, 54, 55, 74, 1000)] == [32, 32, 48, 48, 64, 64, 64]
    covered = [(phases.first_sample(step), phases.at(step).global_batch) for step in range(75)]
    assert covered[0][0] == 0
    assert all(first + batch == then for (first, batch), (then, _) in pairwise(covered))
    assert covered[-1][0] + covered[-1][1] == 3200


def test_a_share_that_is_no_whole_step_is_made_up_by_the_next_phase() -> None:
    phases = Phases(config([{"until": 0.33, "global_batch": 48}, {"until": 1.0, "image_size": 32}]))
    assert [(span.steps, span.image_size) for span in phases.spans] == [(22, 64), (67, 32)]
    assert phases.samples == 22 * 48 + 67 * 32 == 3200
    assert Phases(config([{"until": 1e-9}])).spans[0].steps == 1


def test_the_learning_rate_goes_by_samples() -> None:
    plain, phased = config(), config(THREE)
    rates = [learning_rate(step, phased) for step in range(75)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])  # 320 samples in 5 steps of 64
    for step in range(5, 75):
        first = Phases(phased).first_sample(step)
        assert rates[step] == pytest.approx(learning_rate(first // 32, plain))


def test_each_phase_has_its_own_accumulation() -> None:
    phased = config(THREE)
    plans = [batch_plan(phased, 2, span) for span in Phases(phased).spans]
    assert [(plan.micro, plan.accumulation) for plan in plans] == [(32, 1), (8, 2), (16, 1)]


@pytest.mark.parametrize(
    ("settings", "found", "fix"),
    [
        (
            {"phases": [{"until": 0.5}, {"until": 0.5}]},
            "train.phases.1.until is 0.5 after 0.5",
            "train.phases.1.until=0.75",
        ),
        (
            {"phases": [{"until": 0.5, "global_batch": 40}]},
            "data.lanes 16 does not divide train.phases.0.global_batch 40",
            "train.phases.0.global_batch=32",
        ),
    ],
)
def test_wrong_phases(settings: dict[str, Any], found: str, fix: str) -> None:
    (error,) = check(config(**settings))
    assert found in str(error)
    assert fix in str(error)


def test_every_phase_divides_over_the_ranks_and_all_that_do_not_are_told_at_once() -> None:
    phases = [{"until": 0.2, "global_batch": 80}, {"until": 0.5, "global_batch": 64, "micro_batch": 24}]
    found = [str(error) for error in check_world(config(phases), 3)]
    assert len(found) == 3
    assert "train.global_batch 32 over 3 ranks" in found[0]
    assert "train.phases.0.global_batch 80 over 3 ranks" in found[1]
    assert "train.phases.1.global_batch 64 over 3 ranks" in found[2]
    (error,) = check_world(config(phases), 2)
    assert "train.phases.1.micro_batch 24 does not divide the 32 samples a rank" in str(error)
