"""What DeepSpeed gets wrong in silence, each with our guard in place: no trap closes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.spawn import rank_environment, run_ranks

TRAPS = [
    "scalar_parameter",
    "initial_weights",
    "unused_parameters",
    "different_modules",
    "unfrozen_later",
    "foreign_batch_norms",
    "not_finite",
    "average",
    "loss_scale",
]


@pytest.fixture(scope="module")
def sprung() -> dict[str, Any]:
    return run_ranks("tests.distributed.trap_worker:all_traps", 2, TRAPS, timeout=420)[0]


def test_a_parameter_without_dimensions_is_named(sprung: dict[str, Any]) -> None:
    messages = sprung["scalar_parameter"]
    assert len(messages) == 4
    for message in messages.values():
        assert "no dimensions (shape ()): parameter `temperature`" in message
        assert "shape (1,)" in message


def test_initial_weights_are_exact_in_every_stage_and_precision(sprung: dict[str, Any]) -> None:
    assert sprung["initial_weights"] == {
        f"{stage}-{precision}": [] for precision in ("fp32", "bf16") for stage in range(4)
    }


def test_unused_parameters_get_no_stale_gradients(sprung: dict[str, Any]) -> None:
    losses = sprung["unused_parameters"]
    assert len(losses) == 7
    for name, found in losses.items():
        assert found == pytest.approx(losses["0"], rel=2e-6), name


def test_ranks_that_run_different_modules_are_stopped(sprung: dict[str, Any]) -> None:
    assert set(sprung["different_modules"]) == {"1", "2"}
    assert all("different modules" in message for message in sprung["different_modules"].values())


def test_unfreezing_later_is_an_error(sprung: dict[str, Any]) -> None:
    messages = sprung["unfrozen_later"]
    assert len(messages) == 4
    assert all("`stem.weight`" in message and "init.from" in message for message in messages.values())


def test_torchs_batch_norms_train_in_bf16_and_over_ranks_on_the_cpu(sprung: dict[str, Any]) -> None:
    results = sprung["foreign_batch_norms"]
    exact = results["0-fp32"]
    for name, result in results.items():
        assert result["same_on_all_ranks"], name
        assert result["dtypes"] == ["torch.float32"]
        assert result["losses"] == pytest.approx(exact["losses"], rel=1e-5 if name.endswith("fp32") else 2e-2), name
        for key, values in result["running"].items():
            assert values == pytest.approx(
                exact["running"][key],
                rel=1e-4 if name.endswith("fp32") else 1e-2,
                abs=1e-6 if name.endswith("fp32") else 1e-3,
            ), (name, key)


def test_gradients_that_are_not_finite_change_nothing(sprung: dict[str, Any]) -> None:
    results = sprung["not_finite"]
    assert len(results) == 10
    for name, result in results.items():
        assert result["norms"] == [[False, False], [False, False]], name
        assert result["unchanged"] == [True, True], name
        untouched, *others = result["losses"]
        for other in others:  # the running statistics, about which sums are taken, have seen one batch more
            assert other == pytest.approx(untouched, rel=1e-6), name


def test_the_average_is_right_and_leaves_the_weights_as_they_are(sprung: dict[str, Any]) -> None:
    assert len(sprung["average"]) == 5
    for name, result in sprung["average"].items():
        assert result["difference"] < 1e-6, name
        assert result["moved"] > 1e-4, name
        assert result["back"], name


def test_fp16_overflows_lower_the_loss_scale_which_is_saved(sprung: dict[str, Any]) -> None:
    for stage, result in sprung["loss_scale"].items():
        assert result["first_applied"] == [False], stage
        assert not result["first_norm_finite"], stage
        assert result["unchanged"], stage
        assert 1 < result["scale"] < 2**20, stage
        assert all(result["losses"]["applied"])
        assert result["resumed"]["applied"] == result["losses"]["applied"], stage
        assert result["resumed"]["losses"] == pytest.approx(result["losses"]["losses"], rel=1e-3), stage


TRAIN_WITHOUT_A_COMPILER = """
import json, sys, shutil
assert shutil.which("g++") is None and shutil.which("ninja") is None
from intern_trainer.ranks import init_ranks
from tests.distributed.engine_worker import parity
print(json.dumps(parity(init_ranks(), [{"stage": 0, "steps": 1}, {"stage": 3, "steps": 1}])[0]["losses"]))
"""


def test_nothing_is_compiled_at_the_start(tmp_path: Path) -> None:
    environment = rank_environment(0, 1, 0) | {
        "PATH": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "CXX": "false",
    }
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # as `python trainer/run.py` has it
        environment.pop(name)
    command = [sys.executable, "-c", TRAIN_WITHOUT_A_COMPILER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout.splitlines()[-1])) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler: apt-get install g++")
def test_deepspeeds_compiled_optimizers_train_and_resume(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja lies beside python
    fresh = {"PATH": path, "TORCH_EXTENSIONS_DIR": str(tmp_path)}  # a build that was broken off leaves a lock for ever
    worker = "tests.distributed.trap_worker:compiled_optimizers"
    results = run_ranks(worker, 2, timeout=550, environment=fresh)[0]
    assert set(results) == {"ds_fused_adam 1", "ds_cpu_adam 3"}
    for name, result in results.items():
        assert result["losses"] == pytest.approx(result["torch"], rel=1e-4), name
        # to rounding, not to the bit as with torch's AdamW: seen 1e-7 apart with DeepSpeed's FusedAdam on a CPU
        assert result["resumed"] == pytest.approx(result["losses"][3:], rel=1e-6), name
