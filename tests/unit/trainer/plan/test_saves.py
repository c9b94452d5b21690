"""Which way the saves of a run go, by its plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from intern_trainer.cli_plan import plan_recipe
from intern_trainer.config.load import load_config
from intern_trainer.plan import Cluster, Plan
from intern_trainer.plan.hardware import DEVICES, GIB
from intern_trainer.plan.saves import Saves, saves_of

ON_16 = Cluster(DEVICES["H100"], 16, 8)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_recipe(load_config(overrides=["train.precision=bf16", "train.ema_decay=0.9"]), ON_16)


def saves_on(plan: Plan, background: str, **of_the_cluster: float) -> Saves:
    checkpoint = plan.config.checkpoint.model_copy(update={"background": background})
    config = plan.config.model_copy(update={"checkpoint": checkpoint})
    return saves_of(config, plan.weights, plan.stages[0].estimate, replace(ON_16, **of_the_cluster))


def test_a_copy_of_each_ranks_share_goes_to_host_memory(plan: Plan) -> None:
    saves = plan.saves
    trained = 7_416_349  # fp32 masters, two moments and the average of each
    assert saves.state == pytest.approx(16 * trained, rel=1e-3)
    assert saves.snapshot == pytest.approx(saves.state / 16, abs=1)
    assert saves.in_background
    assert saves.seconds == pytest.approx(saves.state / 2 / 2e9)  # two nodes write
    assert saves.waits == plan.failures.save == pytest.approx(saves.snapshot / 20e9)
    assert plan.failures.interval >= saves.seconds


def test_without_room_training_waits_for_the_disk(plan: Plan) -> None:
    of_a_node = 8 * plan.saves.snapshot
    assert saves_on(plan, "auto", host=of_a_node / 0.9 + 16).in_background  # a tenth stays free
    assert not saves_on(plan, "auto", host=of_a_node / 0.91).in_background
    assert saves_on(plan, "always", host=of_a_node / 2).in_background
    blocking = saves_on(plan, "never")
    assert not blocking.in_background
    assert blocking.waits == blocking.seconds


def test_what_a_run_keeps_on_the_host_is_not_free(plan: Plan) -> None:
    estimate = plan.stages[0].estimate
    offloaded = replace(estimate, memory=replace(estimate.memory, host={"moments": 3 * GIB}))
    saves = saves_of(plan.config, plan.weights, offloaded, replace(ON_16, host=25 * GIB))
    assert saves.host_free == GIB
    assert not saves.in_background
