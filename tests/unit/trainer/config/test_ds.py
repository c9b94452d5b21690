"""Checking a ds_config: by itself, against the recipe, and against the installed DeepSpeed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from intern_trainer.config import ds
from intern_trainer.config.ds_schema import KNOWN, REFUSED_KEYS
from intern_trainer.config.schema import Config

from tests.unit.trainer.config.wrong_ds_configs import DISAGREEING, WRONG

REPOSITORY = Path(__file__).parents[4]


def parts(errors: list[Any]) -> list[tuple[str, str, str]]:
    return [(error.found, error.rule, error.fix) for error in errors]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[json.dumps(wrong)[:60] for wrong, _ in WRONG])
def test_a_wrong_ds_config_is_told_what_to_change(wrong: dict[str, Any], message: tuple[str, str, str]) -> None:
    assert parts(ds.check(wrong)) == [message]


@pytest.mark.parametrize(
    ("given", "recipe", "message"), DISAGREEING, ids=[json.dumps(given)[:60] for given, _, _ in DISAGREEING]
)
def test_a_disagreement_with_the_recipe_is_told(
    given: dict[str, Any], recipe: dict[str, Any], message: tuple[str, str, str]
) -> None:
    assert ds.check(given) == []
    config = Config.model_validate({**recipe, "ds": given})
    assert parts(ds.agree(given, config, 4)) == [message]


def test_all_errors_are_found_at_once() -> None:
    errors = ds.check(
        {
            "pipeline": {},
            "zero_optimization": {"stge": 1, "overlap_comm": 1, "offload_optimizer": {"device": "disk"}},
            "amp": {},
        }
    )
    assert len(errors) == 5


def test_what_agrees_is_accepted() -> None:
    given = {
        "train_batch_size": 1024,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": "auto", "torch_adam": True}},
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {"total_num_steps": 1000, "warmup_type": "linear", "warmup_num_steps": "auto"},
        },
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 5e8,
            "offload_optimizer": None,
            "stage3_prefetch_bucket_size": 0,
        },
    }
    config = Config.model_validate({"ds": given})
    assert ds.check(given) == []
    assert ds.agree(given, config, 4) == []


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/ds").glob("*.json")), ids=lambda path: path.stem)
def test_the_files_of_the_repository_are_right(path: Path) -> None:
    given = json.loads(path.read_text())
    assert ds.check(given) == []
    assert not any(key in given for key in ("train_batch_size", "optimizer", "scheduler", "gradient_clipping"))
    assert f"zero{ds.zero_stage(Config.model_validate({'ds': given}))}" == path.stem.split("_")[0]


def test_the_effective_file_says_everything_and_leaves_the_users_as_it_was() -> None:
    given = {
        "optimizer": {"type": "AdamW"},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"reduce_bucket_size": 1000},
    }
    config = Config.model_validate(
        {"ds": copy.deepcopy(given), "train": {"micro_batch": 64}, "optim": {"clip_grad_norm": 0.0}}
    )
    effective = ds.effective(config, 4)
    assert effective["gradient_clipping"] == 0.0
    assert (
        effective["train_batch_size"],
        effective["train_micro_batch_size_per_gpu"],
        effective["gradient_accumulation_steps"],
    ) == (1024, 64, 4)
    assert effective["zero_optimization"] == {"reduce_bucket_size": 1000, "stage": 1}
    assert effective["bf16"]["enabled"] is True
    assert effective["fp16"]["enabled"] is False
    assert "optimizer" not in effective
    assert config.ds == given
    json.dumps(effective)


def test_half_precision_at_stage_0_runs_as_stage_1_and_says_so() -> None:
    for precision, stage in (("fp32", 0), ("bf16", 1), ("fp16", 1)):
        config = Config.model_validate({"train": {"precision": precision}})
        assert (ds.asked_stage(config), ds.zero_stage(config)) == (0, stage)
    assert "runs as ZeRO-1" in ds.stage_note(config)


def test_the_table_of_keys_is_the_installed_deepspeeds() -> None:
    from tests.unit.trainer.config.ds_schema import known_keys

    assert known_keys() == KNOWN


def test_every_top_level_key_that_deepspeed_reads_is_known_or_refused() -> None:
    """DeepSpeed's own reading of a file, watched."""
    from deepspeed.runtime.config import DeepSpeedConfig

    asked: set[str] = set()

    class Watched(dict):  # type: ignore[type-arg]
        def __contains__(self, key: object) -> bool:
            asked.add(str(key))
            return super().__contains__(key)

        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

        def keys(self) -> Any:
            return self

    DeepSpeedConfig(Watched(train_batch_size=1))
    unknown = asked - KNOWN.keys() - REFUSED_KEYS.keys()
    assert unknown == set()
    assert len(asked) > 40
