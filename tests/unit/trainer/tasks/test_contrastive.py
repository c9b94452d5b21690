"""What the contrastive tasks make of a configuration."""

from __future__ import annotations

import pytest
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError
from intern_trainer.tasks import build_task

from tests.unit.trainer.doubles import ONE_RANK

TEXT = {"width": 16, "layers": 1, "heads": 2, "context_length": 8}


def config(**sections: object) -> Config:
    model = {"image_size": 32, "embed_dim": 8, "text": TEXT, **sections.pop("model", {})}  # type: ignore[dict-item]
    return Config.model_validate({"model": model, **sections})


@pytest.mark.parametrize(
    ("kind", "bounds", "start"),
    [
        ("clip", {}, 1 / 0.07), ("siglip", {}, 10.0), ("clip", {"min_logit_scale": 20.0}, 20.0),
        ("siglip", {"min_logit_scale": 12.0}, 12.0), ("clip", {"max_logit_scale": 5.0}, 5.0),
    ],
)  # fmt: skip
def test_the_temperature_begins_within_its_bounds(kind: str, bounds: dict[str, float], start: float) -> None:
    task = build_task(config(loss={"kind": kind}, model=bounds), ONE_RANK)
    assert float(task.build_model().logit_scale.detach().exp()) == pytest.approx(start)


def test_synonyms_are_needed_for_training_alone(tmp_path: object) -> None:
    declip = {"queue": 8, "projector": 8, "predictor": 4, "synonyms": str(tmp_path)}
    task = build_task(config(loss={"kind": "declip", "declip": declip}), ONE_RANK)
    task.build_model()  # an evaluation, an export
    with pytest.raises(ConfigError, match=r"synonyms is .*, which holds no index\.noun"):
        _ = task.views
