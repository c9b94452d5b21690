"""Exporting a run: what stands in the folder, and what a user can do wrong. Loading it is the story test's."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import intern_trainer.export.run as run_module
import intern_zoo.hf.export
import pytest
import torch
from intern_trainer.errors import CheckpointError, ConfigError, EnvironmentFault, ExportError
from intern_trainer.export import check, export_run
from intern_trainer.export.check import Differences
from intern_trainer.run_folder import RunFolder
from intern_zoo.hf.state_dict import read_folder

from tests.unit.trainer.export.runs import make_run

NOT_LOADED = Differences(features=0.0, logits=0.0, pixels=0.0, scores=0.0)


@pytest.fixture(autouse=True)
def _without_reloading(monkeypatch):
    """Nor with the tokenizer's files, which have their own test and take half of the time."""
    monkeypatch.setitem(check.COMPARE, "contrastive", lambda *_: NOT_LOADED)
    monkeypatch.setattr(intern_zoo.hf.export, "save_tokenizer", lambda *_: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    config, model = make_run(folder)
    entry = {
        "split": "test",
        "step": 20,
        "weights": "ema",
        "results": {"zero_shot/top1": 0.4},
        "chance": {"zero_shot/top1": 0.05},
        "counts": {"zero_shot/count": 200},
    }
    RunFolder(folder).add_evaluation(entry)
    start = {"command": "run.py --config x.yaml", "world_size": 3, "git": {"commit": "abc123", "dirty": True}}
    RunFolder(folder).update_run(starts=[start])
    return folder, config, model


def test_folder_holds_the_averaged_weights_the_card_and_the_code(run, tmp_path, monkeypatch):
    folder, _, model = run
    monkeypatch.chdir(tmp_path)
    report = export_run(folder, Path("hf"), max_shard_bytes=2_000_000)  # as people give folders: relative
    out = tmp_path / "hf"
    weights = dict(read_folder(out))
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert len(list(out.glob("model-*.safetensors"))) > 1
    card = (out / "README.md").read_text()
    assert "| zero_shot/top1 | 40.00% | 5.00% |" in card
    assert "metanet_debug" in card
    assert "license: apache-2.0" in card
    assert "`run.py --config x.yaml`" in card
    assert "abc123 with changes" in card
    assert "embedded:train" in card
    config = json.loads((out / "config.json").read_text())
    assert config["auto_map"].keys() == {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"}
    code = (out / f"{config['auto_map']['AutoModel'].partition('.')[0]}.py").read_text()
    assert "import intern_" not in code
    assert report.weights == "ema"
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert "hf/README.md" in str(report)  # as the user gave it
    assert list(tmp_path.iterdir()) == [out]


def test_what_served_the_loss_alone_stays_behind(tmp_path):
    heads = {"queue": 7, "projector": 8, "predictor": 4}
    _, model = make_run(tmp_path / "run", ranks=1, loss={"kind": "declip", "declip": heads})
    report = export_run(tmp_path / "run", tmp_path / "hf")
    weights, state = dict(read_folder(tmp_path / "hf")), model.state_dict()
    behind = state.keys() - weights.keys()
    assert "text.token_embedding.mask" in behind
    assert {name for name in behind if not name.startswith("heads.")} == {"text.token_embedding.mask"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())
    assert report.parameters == sum(p.numel() for name, p in model.named_parameters() if name in weights)


def test_raw_weights_and_a_chosen_checkpoint(run, tmp_path):
    folder, _, model = run
    checkpoint = next((folder / "checkpoints").glob("step-*"))
    report = export_run(folder, tmp_path / "hf", weights="raw", checkpoint=checkpoint)
    assert report.checkpoint == checkpoint
    raw = dict(read_folder(tmp_path / "hf"))
    torch.testing.assert_close(raw["logit_scale"], model.logit_scale.detach() + 0.01)
    assert "not evaluated" in (tmp_path / "hf" / "README.md").read_text()


def test_larger_than_memory_compares_the_stored_numbers(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "fits_in_memory", lambda _: False)
    report = export_run(run[0], tmp_path / "hf")
    assert report.differences == Differences(weights=0.0)
    assert "every stored number" in str(report)
    (tmp_path / "hf" / "model.safetensors").write_bytes(_with_last_byte_changed(tmp_path / "hf" / "model.safetensors"))
    with pytest.raises(ExportError, match="1 tensors of the folder"):
        check.compare_weights(tmp_path / "hf", run[2].state_dict().items())


def _with_last_byte_changed(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    return bytes(data)


def test_a_full_folder_is_not_touched(run, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        export_run(run[0], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        export_run(run[0], tmp_path / "file" / "hf")


def test_an_empty_folder_is_filled(run, tmp_path):
    (tmp_path / "hf").mkdir()
    export_run(run[0], tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").exists()


def test_not_a_run(tmp_path):
    with pytest.raises(ConfigError, match="not the folder of a run"):
        export_run(tmp_path, tmp_path / "hf")


def test_no_checkpoint_and_no_average(tmp_path):
    make_run(tmp_path / "run", average=False, ranks=1)
    with pytest.raises(CheckpointError, match="holds no moving average"):
        export_run(tmp_path / "run", tmp_path / "hf", weights="ema")
    for file in sorted((tmp_path / "run" / "checkpoints").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        export_run(tmp_path / "run", tmp_path / "hf")


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (ExportError("does not load"), ExportError),
        (OSError(errno.ENOSPC, "No space left on device"), EnvironmentFault),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch, failure, error):
    def fail(*_):
        raise failure

    monkeypatch.setitem(check.COMPARE, "contrastive", fail)
    with pytest.raises(error):
        export_run(run[0], tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(run, tmp_path, monkeypatch):
    original = run_module.build_task

    def other(config, ranks):
        text = config.model.text.model_copy(update={"width": 64})
        return original(config.model_copy(update={"model": config.model.model_copy(update={"text": text})}), ranks)

    monkeypatch.setattr(run_module, "build_task", other)
    with pytest.raises(CheckpointError, match=r"has shape .* the model's has"):
        export_run(run[0], tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []
