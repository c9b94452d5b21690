"""The plan's bytes against those of engines on two gloo ranks: what they hold, and what they send."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from intern_trainer.config.checks import batch_plan
from intern_trainer.plan import states
from intern_trainer.plan.model import Weights, weigh
from intern_trainer.plan.settings import settings_of
from intern_trainer.plan.traffic import traffic
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask

from tests.distributed.engine_worker import debug_config
from tests.distributed.spawn import run_ranks

RANKS = 2
BUCKETS = {"reduce_bucket_size": 20_000, "allgather_bucket_size": 1_000_000}
SMALL = {**BUCKETS, "stage3_param_persistence_threshold": 1000, "stage3_prefetch_bucket_size": 10_000}
SHORT = {**SMALL, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
CASES: list[dict[str, Any]] = [
    {"stage": 0, "precision": "fp32", "accumulation": 2},
    {"stage": 1, "precision": "bf16", "accumulation": 2, "zero": BUCKETS, "ema_decay": 0.9},
    {"stage": 2, "precision": "fp32", "accumulation": 1, "zero": BUCKETS},
    {"stage": 2, "precision": "bf16", "accumulation": 2, "zero": BUCKETS},
    {"stage": 3, "precision": "fp32", "accumulation": 1, "zero": SMALL},
    {"stage": 3, "precision": "bf16", "accumulation": 2, "zero": SHORT},
]


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    on_all = run_ranks("tests.distributed.plan_worker:measure", RANKS, CASES, timeout=300)
    heights = [[result["held"] for result in results] for results in zip(*on_all, strict=True)]
    return [
        {"held": {name: max(held[name] for held in of_ranks) for name in of_ranks[0]}, "sent": result["sent"]}
        for of_ranks, result in zip(heights, on_all[0], strict=True)
    ]


def weights_of(config: Any) -> Weights:
    with torch.device("meta"):
        return weigh(ContrastiveTask(config, Ranks(0, 1, 0, torch.device("cpu"))).build_model(), config)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"zero{CASES[i]['stage']}-{CASES[i]['precision']}")
def test_states_are_those_that_an_engine_holds(index: int, measured: list[dict[str, Any]]) -> None:
    config = debug_config(CASES[index], RANKS)
    weights, settings = weights_of(config), settings_of(config)
    always = sum(states.resident(weights, settings, RANKS).values())
    backward = states.in_backward(weights, settings, RANKS).get("gradients", 0)
    update = states.in_update(weights, settings, RANKS)
    freed = update.get("buckets", 0)  # nothing but the call that copies them together holds them
    held = measured[index]["held"]
    assert always + backward == pytest.approx(held["backward"], rel=0.05)
    assert always + sum(update.values()) - freed == pytest.approx(held["update"], rel=0.05)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"zero{CASES[i]['stage']}-{CASES[i]['precision']}")
def test_traffic_is_what_the_ranks_send(index: int, measured: list[dict[str, Any]]) -> None:
    config = debug_config(CASES[index], RANKS)
    planned: dict[str, int] = {}
    for collective in traffic(config, weights_of(config), settings_of(config), batch_plan(config, RANKS)):
        ours = "our " if collective.what.startswith(("batch norms", "features")) else ""
        planned[ours + collective.kind] = planned.get(ours + collective.kind, 0) + collective.payload
    sent = {kind: size for kind, size in measured[index]["sent"].items() if size > 100}  # norms, flags
    assert planned == pytest.approx(sent, rel=0.02)
