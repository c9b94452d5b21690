"""The plan's bytes against those of engines on gloo ranks: what they hold, and what they send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from intern_trainer.blocks import blocks_of
from intern_trainer.config.checks import batch_plan
from intern_trainer.plan import states
from intern_trainer.plan.estimate import Estimator
from intern_trainer.plan.gathers import backward_gathers
from intern_trainer.plan.hardware import DEVICES, Cluster
from intern_trainer.plan.model import Weights, weigh
from intern_trainer.plan.settings import settings_of
from intern_trainer.plan.traffic import Collective, traffic
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_zoo.chain import links
from intern_zoo.metanet.norm import BatchNorm

from tests.distributed.pipeline_worker import Case, build, case_config, even
from tests.distributed.spawn import run_ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
BUCKETS = {"reduce_bucket_size": 20_000, "allgather_bucket_size": 1_000_000}
SMALL = {**BUCKETS, "stage3_param_persistence_threshold": 1000, "stage3_prefetch_bucket_size": 10_000}
SHORT = {**SMALL, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
ONE: Case = {"pipeline": 1, "data": 2}
CASES: list[Case] = [
    {**ONE, "stage": 0, "precision": "fp32", "micro_batches": 2},
    {**ONE, "stage": 1, "precision": "bf16", "micro_batches": 2, "zero": BUCKETS, "ema_decay": 0.9},
    {**ONE, "stage": 2, "precision": "fp32", "micro_batches": 1, "zero": BUCKETS},
    {**ONE, "stage": 2, "precision": "bf16", "micro_batches": 2, "zero": BUCKETS},
    {**ONE, "stage": 3, "precision": "fp32", "micro_batches": 1, "zero": SMALL},
    {**ONE, "stage": 3, "precision": "fp32", "micro_batches": 2, "zero": SMALL, "recompute": "full"},
    {**ONE, "stage": 3, "precision": "bf16", "micro_batches": 2, "zero": SHORT},
]


HPZ = {**SHORT, "zero_hpz_partition_size": 2}
PIPELINE: Case = {"pipeline": 2, "data": 2, "micro_batches": 2}
ON_FOUR: list[Case] = [
    {**CASES[-1], "data": 4, "zero": HPZ},
    {**PIPELINE, "stage": 3, "zero": SHORT, "recompute": "full"},
]
SLOW_ON_FOUR: list[Case] = [
    {**CASES[-1], "data": 4},
    {**PIPELINE, "stage": 0},
    {**PIPELINE, "stage": 1, "precision": "bf16", "zero": BUCKETS},
    {**PIPELINE, "stage": 2, "zero": BUCKETS, "text": "first", "freeze": ["text"]},
    {**PIPELINE, "stage": 3, "zero": SMALL, "precision": "bf16", "together": 2},
    {**PIPELINE, "micro_batches": 4, "stage": 3, "zero": SHORT},
    {**PIPELINE, "stage": 3, "zero": HPZ},
]
"""In this order: modules of engines without a pipeline must have the same numbers on all ranks."""
OURS = ("batch norms", "features")


def measure(cases: list[Case], ranks: int) -> list[list[dict[str, Any]]]:
    """By case and stage: what the rank with the most holds, and what each sends."""
    on_all = run_ranks("tests.distributed.plan_worker:measure", ranks, cases, timeout=400)
    return [
        [_of_stage(of_ranks[first : first + case["data"]]) for first in range(0, ranks, case["data"])]
        for case, of_ranks in zip(cases, zip(*on_all, strict=True), strict=True)
    ]


def _of_stage(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    held = [result["held"] for result in results]
    return {"held": {name: max(h[name] for h in held) for name in held[0]}, "sent": results[0]["sent"]}


@pytest.fixture(scope="module")
def on_two() -> list[list[dict[str, Any]]]:
    return measure(CASES, 2)


@pytest.fixture(scope="module")
def on_four() -> list[list[dict[str, Any]]]:
    return measure(ON_FOUR, 4)


def planned(case: Case) -> list[tuple[Weights, list[Collective]]]:
    """Of each stage. Nothing is measured on fake tensors where there is no pipeline: it would tell memory and time."""
    config, stages = case_config(case), case["pipeline"]
    with torch.device("meta"):
        model: Any = build(config, ALONE)
    if stages == 1:
        weights, again = weigh(model, config), norms_of_blocks(model) if case.get("recompute") else []
        return [(weights, traffic(config, weights, settings_of(config), batch_plan(config, case["data"]), again))]
    text = case.get("text", "last")
    cut = even(len(links(model, text)), stages * case.get("chunks", 1))
    keys = config.parallel.model_copy(update={"cut": list(cut), "text": text})
    config = config.model_copy(update={"parallel": keys})
    estimator = Estimator(config, ContrastiveTask(config, ALONE), shared_norms=True)
    cluster, recompute = Cluster(DEVICES["H100"], stages * case["data"], 8), config.parallel.recompute
    estimates = estimator.estimates(estimator.spans[0], settings_of(config), recompute, cluster)
    parts = estimator.parts(recompute, cluster)
    return [(part.weights, found.collectives) for part, found in zip(parts, estimates, strict=True)]


def norms_of_blocks(model: Any) -> list[int]:
    inside = [module for _, block in blocks_of(model) for module in block.modules()]
    return [module.num_features for module in inside if isinstance(module, BatchNorm)]


def compare_states(case: Case, weights: Weights, held: dict[str, int], stage: int) -> None:
    settings, ranks = settings_of(case_config(case)), case["data"]
    always = sum(states.resident(weights, settings, ranks).values())
    alternates = backward_gathers(case_config(case), stage, case["micro_batches"]) is not None
    keeps_whole = alternates and not case.get("recompute")
    backward = states.in_backward(weights, settings, ranks, keeps_whole)
    names = ["gradients", "whole gradients", "second parts (hpZ)"] + ["gathered parameters"] * keeps_whole
    besides = sum(backward.get(name, 0) for name in names)
    update = states.in_update(weights, settings, ranks)
    freed = update.get("buckets", 0)  # nothing but the call that copies them together holds them
    assert always + besides == pytest.approx(held["backward"], rel=0.05)
    assert always + sum(update.values()) - freed == pytest.approx(held["update"], rel=0.05)
    assert always == pytest.approx(held["between steps"], rel=0.05)


def compare_traffic(case: Case, collectives: list[Collective], sent: dict[str, int]) -> None:
    expected: dict[str, int] = {}
    whose = (*OURS, "gradients") if case["stage"] == 0 and case["pipeline"] > 1 else OURS  # it is not DeepSpeed's
    for collective in collectives:
        ours = collective.what.startswith(whose) and collective.kind != "to stages"
        kind = ("our " if ours else "") + collective.kind
        expected[kind] = expected.get(kind, 0) + collective.payload
    large = {kind: size for kind, size in sent.items() if size > 100}  # smaller are norms and flags
    assert expected == pytest.approx(large, rel=0.02)


def compare(case: Case, results: list[dict[str, Any]]) -> None:
    for stage, ((weights, collectives), result) in enumerate(zip(planned(case), results, strict=True)):
        compare_states(case, weights, result["held"], stage)
        compare_traffic(case, collectives, result["sent"])


def label(case: Case) -> str:
    names = ("pipeline", "stage", "precision", "recompute", "together", "chunks")
    return "-".join(f"{name}={case[name]}" for name in names if name in case)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[label(case) for case in CASES])
def test_states_and_traffic_are_those_of_an_engine(index: int, on_two: list[list[dict[str, Any]]]) -> None:
    compare(CASES[index], on_two[index])


@pytest.mark.parametrize("index", range(len(ON_FOUR)), ids=["hpZ", "pipeline"])
def test_so_they_are_with_second_parts_and_of_the_stages_of_a_pipeline(
    index: int, on_four: list[list[dict[str, Any]]]
) -> None:
    compare(ON_FOUR[index], on_four[index])


@pytest.mark.slow
def test_so_they_are_of_every_pipeline() -> None:
    for case, results in zip(SLOW_ON_FOUR, measure(SLOW_ON_FOUR, 4), strict=True):
        compare(case, results)
