"""The plan's bytes against those of engines on two gloo ranks: what they hold, and what they send."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from intern_trainer.blocks import blocks_of
from intern_trainer.config.checks import batch_plan
from intern_trainer.plan import states
from intern_trainer.plan.model import Weights, weigh
from intern_trainer.plan.settings import settings_of
from intern_trainer.plan.traffic import traffic
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_zoo.metanet.norm import BatchNorm

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
    {"stage": 3, "precision": "fp32", "accumulation": 2, "zero": SMALL, "recompute": "full"},
    {"stage": 3, "precision": "bf16", "accumulation": 2, "zero": SHORT},
]


ON_FOUR: list[dict[str, Any]] = [CASES[-1], {**CASES[-1], "zero": {**SHORT, "zero_hpz_partition_size": 2}}]
OURS = ("batch norms", "features")


def measure(cases: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """By case: what the rank with the most holds, and what each sends."""
    on_all = run_ranks("tests.distributed.plan_worker:measure", ranks, cases, timeout=300)
    found = []
    for of_ranks in zip(*on_all, strict=True):
        held = [result["held"] for result in of_ranks]
        found.append({"held": {name: max(h[name] for h in held) for name in held[0]}, "sent": of_ranks[0]["sent"]})
    return found


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    return measure(CASES, RANKS)


def weights_of(config: Any) -> Weights:
    with torch.device("meta"):
        return weigh(ContrastiveTask(config, Ranks(0, 1, 0, torch.device("cpu"))).build_model(), config)


def norms_of_blocks(config: Any) -> list[int]:
    with torch.device("meta"):
        model = ContrastiveTask(config, Ranks(0, 1, 0, torch.device("cpu"))).build_model()
    inside = [module for _, block in blocks_of(model) for module in block.modules()]
    return [module.num_features for module in inside if isinstance(module, BatchNorm)]


def compare_states(case: dict[str, Any], ranks: int, held: dict[str, int]) -> None:
    config = debug_config(case, ranks)
    weights, settings = weights_of(config), settings_of(config)
    always = sum(states.resident(weights, settings, ranks).values())
    backward = states.in_backward(weights, settings, ranks).get("gradients", 0)
    update = states.in_update(weights, settings, ranks)
    freed = update.get("buckets", 0)  # nothing but the call that copies them together holds them
    assert always + backward == pytest.approx(held["backward"], rel=0.05)
    assert always + sum(update.values()) - freed == pytest.approx(held["update"], rel=0.05)


def compare_traffic(case: dict[str, Any], ranks: int, sent: dict[str, int]) -> None:
    config = debug_config(case, ranks)
    planned: dict[str, int] = {}
    weights, again = weights_of(config), norms_of_blocks(config) if case.get("recompute") else []
    for collective in traffic(config, weights, settings_of(config), batch_plan(config, ranks), again):
        kind = ("our " if collective.what.startswith(OURS) else "") + collective.kind
        planned[kind] = planned.get(kind, 0) + collective.payload
    large = {kind: size for kind, size in sent.items() if size > 100}  # smaller are norms and flags
    assert planned == pytest.approx(large, rel=0.02)


def label(index: int) -> str:
    return f"zero{CASES[index]['stage']}-{CASES[index]['precision']}"


@pytest.mark.parametrize("index", range(len(CASES)), ids=label)
def test_states_are_those_that_an_engine_holds(index: int, measured: list[dict[str, Any]]) -> None:
    compare_states(CASES[index], RANKS, measured[index]["held"])


@pytest.mark.parametrize("index", range(len(CASES)), ids=label)
def test_traffic_is_what_the_ranks_send(index: int, measured: list[dict[str, Any]]) -> None:
    compare_traffic(CASES[index], RANKS, measured[index]["sent"])


@pytest.mark.slow
def test_both_hold_on_four_ranks_with_second_parts_too() -> None:
    for case, result in zip(ON_FOUR, measure(ON_FOUR, 4), strict=True):
        compare_states(case, 4, result["held"])
        compare_traffic(case, 4, result["sent"])
