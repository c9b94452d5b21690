"""The whole plan: what it says of a small recipe, by the command too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from intern_trainer import cli
from intern_trainer.cli_plan import plan_recipe
from intern_trainer.config.load import load_config
from intern_trainer.errors import ConfigErrors
from intern_trainer.plan import Cluster, Plan, find_device
from intern_trainer.plan.fit import name_of
from intern_trainer.plan.hardware import DEVICES, GIB
from intern_trainer.plan.picture import memory_bars
from intern_trainer.plan.show import as_json, show
from intern_trainer.plan.stages import bubble_line
from intern_trainer.plan.traffic import Collective
from rich.console import Console

ON_8 = Cluster(DEVICES["H100"], 8, 8)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_recipe(load_config(overrides=["train.precision=bf16"]), ON_8)


def test_the_recommendation_fits_and_says_why(plan: Plan) -> None:
    estimate = plan.stages[0].estimate
    assert name_of(estimate.settings) == "ZeRO-1"
    assert estimate.memory.peak < ON_8.budget
    assert plan.fits.largest_micro == 16
    assert "the fastest that fits" in plan.recommendation
    assert "of 79 GiB" in plan.recommendation


def test_a_step_is_computing_updating_and_waiting(plan: Plan) -> None:
    pace = plan.stages[0].estimate.pace
    assert pace.step == pace.compute + pace.update + pace.exposed
    assert pace.images_per_second == pytest.approx(128 / pace.step)
    assert plan.days == pytest.approx(plan.samples / pace.images_per_second / plan.failures.goodput / 86400)


def test_what_does_not_fit_is_said() -> None:
    tiny = replace(DEVICES["H100"], memory=3 * GIB)
    config = load_config(overrides=["model.text.width=512", "model.text.layers=12", "model.text.heads=8"])
    plan = plan_recipe(config, Cluster(replace(tiny, context=2.9 * GIB), 2, 8))
    assert plan.fits.largest_micro == 0
    assert plan.fits.smallest is None
    assert plan.recommendation.startswith("nothing fits into 3 GiB")


def test_collectives_cross_the_wire_as_rings_do() -> None:
    assert Collective("all_reduce", "", 800, 4).wire == 1200
    assert Collective("all_gather", "", 800, 4).wire == 600
    # eight NICs of 50 GB/s at 75 %: 300 GB/s; within a node NVLink's 450 GB/s at 75 %
    two_nodes = Cluster(DEVICES["H100"], 16, 8)
    assert Collective("all_gather", "", 16 * 10**9, 16).seconds(two_nodes) == pytest.approx(15 / 300, rel=1e-3)
    assert Collective("all_gather", "", 16 * 10**9, 8).seconds(two_nodes) == pytest.approx(14 / 337.5, rel=1e-3)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["plan", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_prints_json_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    options = ("--gpus", "2", "--json", "--picture", str(picture), "--samples", "13e9", "--recompute", "full")
    code, out, _ = run(capsys, *options, "--save-seconds", "20")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    assert found["parameters"]["total"] == 7_416_349
    assert found["samples"] == 13e9
    assert found["saves"]["measured"] is True
    (stage,) = found["stages"]
    assert stage["recompute"] == "full"
    memory = stage["memory"]
    higher = max(sum(memory[height].values()) for height in ("backward", "update"))
    assert memory["peak"] == sum(memory["resident"].values()) + higher + memory["context"]
    bars = ElementTree.parse(picture).getroot()
    titles = [title.text for title in bars.iter("{http://www.w3.org/2000/svg}title")]
    assert any("activations" in (title or "") for title in titles)


def test_the_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--gpus", "2", "--gpu", "cpu")
    assert code == 0
    for words in ("metanet_debug, 7,416,349 parameters", "moments", "batch norms", "goodput", "recommended: "):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "H1000"], "--gpu H1000"),
        (["--gpus", "0"], "--gpus 0"),
        (["--gpus", "2", "--efficiency", "-1"], "--efficiency -1"),
        (["--gpus", "3"], "train.global_batch 128 over 3 ranks"),
        (["optim.lrr=1"], "did you mean optim.lr?"),
        (["--picture", "/nowhere/plan.svg"], "--picture /nowhere/plan.svg"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert words in err


def test_rules_of_the_ds_config_hold(tmp_path: Path) -> None:
    ds_config = tmp_path / "ds.json"
    ds_config.write_text(json.dumps({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}))
    with pytest.raises(ConfigErrors, match="zero_hpz_partition_size is 3 on 8 ranks"):
        plan_recipe(load_config(ds_config=ds_config), ON_8)


def test_every_device_has_a_peak_and_a_price_of_a_byte() -> None:
    for name in (*DEVICES, "cpu"):
        device = find_device(name, 2)
        assert device.product_rate("bf16") <= device.peak("bf16")
        assert 0 < device.copy_rate <= device.bandwidth


def test_the_picture_has_a_colour_for_every_part() -> None:
    """ZeRO-3 with second parts and a moving average has the most."""
    zero = {"stage": 3, "zero_hpz_partition_size": 8}
    config = load_config(overrides=["train.precision=bf16", "train.ema_decay=0.9"])
    largest = plan_recipe(
        config.model_copy(update={"ds": {"zero_optimization": zero}}), Cluster(DEVICES["H100"], 16, 8)
    )
    parts = largest.stages[0].estimate.memory.parts
    assert {"second parts (hpZ)", "average", "gathered parameters"} <= parts.keys()
    assert all(name in memory_bars(largest) for name in parts if "'" not in name)
    assert name_of(largest.stages[0].estimate.settings) == "ZeRO-3 with hpZ-8"


def test_memory_bars_are_as_long_as_their_parts(plan: Plan) -> None:
    bars = ElementTree.fromstring(memory_bars(plan))
    boxes = [r for r in bars.iter("{http://www.w3.org/2000/svg}rect") if len(r) == 1]
    parts = plan.stages[0].estimate.memory.parts
    assert len(boxes) == len(parts)
    widths = [float(box.get("width", "0")) for box in boxes]
    scale = sum(widths) / sum(parts.values())
    assert widths == pytest.approx([size * scale for size in parts.values()], abs=0.3)


def test_a_pipeline_has_a_plan_of_each_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    piped = ("parallel.pipeline=2", "train.micro_batch=8", "train.precision=bf16")
    config = load_config(overrides=list(piped))
    plan = plan_recipe(config, Cluster(DEVICES["H100"], 4, 8))
    assert [stage.ranks for stage in plan.stages] == [range(2), range(2, 4)]
    assert sum(stage.weights.total for stage in plan.stages) == plan.weights.total
    first, last = (stage.estimate for stage in plan.stages)
    assert first.batch.accumulation == 8
    assert first.pace == last.pace
    assert first.pace.bubble == pytest.approx(1 / 9)
    assert first.pace.mfu == pytest.approx(last.pace.mfu)
    assert "loss" not in first.memory.backward
    assert "loss" in last.memory.backward
    sent = {c.what: c.payload for c in first.collectives if c.kind == "to stages"}
    back = {c.what: c.payload for c in last.collectives if c.kind == "to stages"}
    assert list(sent) == ["features to the next stage"]
    assert list(back) == ["their gradients"]
    assert sent["features to the next stage"] == back["their gradients"] > 0
    picture.write_text(memory_bars(plan), encoding="utf-8")
    assert "stage 1, 2 ranks" in picture.read_text()
    show(plan, Console(width=120))
    out = capsys.readouterr().out
    bubble = "8 micro-batch(es) of a step in 2 stages by 1f1b: 11.1%"
    for words in ("busiest over mean", "parallel.cut=[", "stage 1", bubble):
        assert words in out
    assert as_json(plan)["cut"]["pieces"] == plan.cut.pieces  # type: ignore[union-attr]


def test_fewer_micro_batches_than_stages_are_noted() -> None:
    config = load_config(overrides=["parallel.pipeline=4"])
    assert "fewer stages, leaves less" in bubble_line(config, 2)
    assert "leaves less" not in bubble_line(config, 4)
