"""An exported folder on a machine with torch, transformers and Pillow only, and with accelerate besides."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from intern_trainer.data.transforms import eval_transform
from intern_trainer.evaluate.zero_shot import class_features
from intern_trainer.export import export_run
from PIL import Image

from tests.story.clean_env import make_clean_env
from tests.unit.trainer.checkpoint.fakes import ALONE
from tests.unit.trainer.export.runs import make_run
from tests.unit.zoo.text.folders import make_folder

TEXTS = ["a red square", "a house", "a cat"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run saved by three ranks, its export, and the report of the comparison that every export makes."""
    root = tmp_path_factory.mktemp("export")
    config, model = make_run(root / "run")
    report = export_run(root / "run", root / "hf", max_shard_bytes=2_000_000)
    return root / "hf", config, model, report


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    y_h1, x_1w = torch.linspace(0, 1, 90)[:, None], torch.linspace(0, 1, 130)[None]
    rgb = torch.stack([(5 * x_1w + y_h1).sin().abs(), y_h1 + 0 * x_1w, ((7 * x_1w).floor() % 2) + 0 * y_h1], dim=-1)
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray((255 * rgb).to(torch.uint8).numpy()).save(path)
    return path


def _use(python: Path, folder: Path, picture: Path, device_map: str, scratch: Path) -> dict:
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "HF_HOME": str(scratch), "HF_HUB_OFFLINE": "1"}
    program = [str(python), str(Path(__file__).with_name("load_export.py")), str(folder), str(picture), device_map]
    done = subprocess.run(program, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_reloaded_model_computes_the_same(exported):
    _, _, _, report = exported
    assert report.differences.features <= 1e-5
    assert report.differences.scores <= 2e-3


@pytest.mark.parametrize(
    ("packages", "device_map"), [([], "none"), pytest.param(["accelerate"], "auto", marks=pytest.mark.slow)]
)
def test_loads_in_a_clean_environment(exported, picture, tmp_path, packages, device_map):
    folder, config, model, _ = exported
    python = make_clean_env(tmp_path / "venv", ["torch", "transformers", "pillow", *packages])
    found = _use(python, folder, picture, device_map, tmp_path)
    assert found["found"] == packages
    assert ("disk" in found["devices"]) == (device_map == "auto")
    image = eval_transform(config)(Image.open(picture))[None]
    with torch.no_grad():
        heads_ce = class_features(model, TEXTS, "none", config, ALONE)  # our evaluator's
        out = model(image=image)
        expected = (out.logit_scale * out.image_features @ heads_ce.T).softmax(dim=-1)[0]
    torch.testing.assert_close(torch.tensor(found["probabilities"]), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected, atol=1e-5, rtol=1e-4)
    assert found["feature_norm"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_a_tokenizer_of_ones_own_goes_along(picture, tmp_path):
    own = make_folder(tmp_path / "own", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    text = {"width": 32, "layers": 2, "heads": 2, "context_length": 24, "tokenizer": str(own), "pack": True}
    config, model = make_run(tmp_path / "run", model={"text": text}, average=False, ranks=1)
    assert model.text.vocab_size < 400
    assert export_run(tmp_path / "run", tmp_path / "hf").differences.features <= 1e-5
    python = make_clean_env(tmp_path / "venv", ["torch", "transformers", "pillow"])
    found = _use(python, tmp_path / "hf", picture, "none", tmp_path)
    with torch.no_grad():
        heads_ce = class_features(model, TEXTS, "none", config, ALONE)
        out = model(image=eval_transform(config)(Image.open(picture))[None])
        expected = (out.logit_scale * out.image_features @ heads_ce.T).softmax(dim=-1)[0]
    torch.testing.assert_close(torch.tensor(found["scores"]), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_timm_tower_needs_timm_and_says_so(picture, tmp_path):
    make_run(tmp_path / "run", model={"image": "resnet18"}, average=False, ranks=1)
    report = export_run(tmp_path / "run", tmp_path / "hf")
    assert report.requires == ("timm",)
    assert report.differences.features <= 1e-5
    python = make_clean_env(tmp_path / "venv", ["torch", "transformers", "pillow"])
    with pytest.raises(AssertionError, match="timm"):
        _use(python, tmp_path / "hf", picture, "none", tmp_path)
