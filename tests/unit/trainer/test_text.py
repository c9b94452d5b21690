"""The configured tokenizer, that a run keeps to it, and fewer tokens a caption."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from intern_trainer.config.load import load_config
from intern_trainer.config.schema import Config, TextTower
from intern_trainer.data.token_drop import TokenDrop
from intern_trainer.errors import CheckpointError, ConfigError, ConfigErrors
from intern_trainer.export import export_run
from intern_trainer.init_from import initialise
from intern_trainer.run_folder import RunFolder
from intern_trainer.tasks import build_task
from intern_trainer.text import _tokenizer, check_tokenizer, text_options, text_tokenizer, tokenizer_digest

from tests.unit.trainer.checkpoint.fakes import ALONE
from tests.unit.trainer.export.runs import make_run
from tests.unit.zoo.text.folders import LINES, make_folder

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TEXT = {"width": 32, "layers": 1, "heads": 2, "context_length": 12}


@pytest.fixture(autouse=True)
def _forget_tokenizers():
    """A process reads a folder once; these tests change folders."""
    _tokenizer.cache_clear()


def test_the_tower_takes_vocabulary_and_end_from_the_tokenizer(tmp_path: Path) -> None:
    own = make_folder(tmp_path, **SPECIAL)
    config = Config.model_validate(
        {"model": {"image_size": 64, "embed_dim": 8, "text": {**TEXT, "tokenizer": str(own), "pack": True}}}
    )
    task = build_task(config, ALONE)
    tower = task.build_model().text
    words = text_tokenizer(config.model.text)
    assert (tower.vocab_size, tower.eos_id) == (words.vocab_size, words.eot_token_id)
    assert tower.token_embedding.num_embeddings < 400
    assert type(tower).__name__ == "PackedTextTransformer"
    text = task.views.texts(LINES, [1] * len(LINES))["text"]
    assert text.equal(words(LINES))
    assert text_options(TextTower())["vocab_size"] == 49408


def test_a_changed_tokenizer_is_refused(tmp_path: Path) -> None:
    own = make_folder(tmp_path / "own", **SPECIAL)
    text = TextTower(**TEXT, tokenizer=str(own))
    before = tokenizer_digest(text)
    assert tokenizer_digest(TextTower()) == "clip"
    check_tokenizer(text, before, "run")
    make_run(tmp_path / "run", model={"text": {**TEXT, "tokenizer": str(own)}}, average=False, ranks=1)
    make_folder(own, [*LINES, "more words"], **SPECIAL)
    _tokenizer.cache_clear()
    with pytest.raises(CheckpointError, match=r"run knows the tokenizer [0-9a-f]{12}, .* is [0-9a-f]{12}"):
        check_tokenizer(text, before, "run")
    with pytest.raises(CheckpointError, match="step-00000020 knows the tokenizer"):
        export_run(tmp_path / "run", tmp_path / "hf")


def moved_run(folder: Path) -> tuple[RunFolder, str]:
    """A run whose tokenizer's own folder is gone, and the tokenizer's digest."""
    own = make_folder(folder / "own", **SPECIAL)
    make_run(folder / "run", model={"text": {**TEXT, "tokenizer": str(own)}}, average=False, ranks=1)
    run, digest = RunFolder(folder / "run"), tokenizer_digest(TextTower(**TEXT, tokenizer=str(own)))
    run.keep_tokenizer(own)
    shutil.rmtree(own)
    _tokenizer.cache_clear()
    return run, digest


def test_a_run_keeps_its_tokenizer(tmp_path: Path) -> None:
    run, digest = moved_run(tmp_path)
    with pytest.raises(ConfigErrors, match="holds no tokenizer"):
        load_config(run.config)
    assert tokenizer_digest(load_config(run.config, run.settings()).model.text) == digest
    assert RunFolder(tmp_path / "other").settings() == []


@pytest.mark.slow
def test_a_moved_run_is_exported_with_its_tokenizer(tmp_path: Path) -> None:
    run, _ = moved_run(tmp_path)
    export_run(run.path, tmp_path / "hf", checkpoint=None)
    assert (tmp_path / "hf" / "tokenizer.json").is_file()


def test_weights_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    own, other = make_folder(tmp_path / "own", **SPECIAL), make_folder(tmp_path / "other", LINES[::-1][:3], **SPECIAL)
    make_run(tmp_path / "run", model={"text": {**TEXT, "tokenizer": str(own)}}, average=False, ranks=1)
    config = Config.model_validate(
        {"model": {"text": {**TEXT, "tokenizer": str(other)}}, "init": {"from": str(tmp_path / "run")}}
    )
    with pytest.raises(CheckpointError, match=r"init.from=.* knows the tokenizer"):
        initialise(SimpleNamespace(shapes=dict), config, ALONE)  # type: ignore[arg-type]


def test_no_tokenizer_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"model.text.tokenizer=.*holds no tokenizer\.json"):
        load_config(None, [f"model.text.tokenizer={tmp_path}"])
    make_folder(tmp_path, bos_token="<s>")
    with pytest.raises(ConfigError, match="has no end token"):
        text_tokenizer(TextTower(tokenizer=str(tmp_path)))


def test_dropped_tokens_are_drawn_by_seed_and_ends_stay() -> None:
    words = text_tokenizer(TextTower(context_length=14))
    whole = words(["one two three four five six seven eight nine ten", "one two", ""])
    drop = TokenDrop(0.5, words.sot_token_id, words.eot_token_id)
    found = drop(whole, [3, 3, 3])
    assert found.shape == whole.shape
    assert (found == words.eot_token_id).int().argmax(dim=1).tolist() == [6, 2, 1]
    assert (found[:, 0] == words.sot_token_id).all()
    kept, given = found[0, 1:6].tolist(), whole[0].tolist()
    assert kept == sorted(kept, key=given.index)
    assert found.equal(drop(whole, [3, 3, 3]))
    rows = {tuple(drop(whole[:1], [seed])[0].tolist()) for seed in range(40)}
    assert len(rows) > 30
    assert TokenDrop(0.0, words.sot_token_id, words.eot_token_id)(whole[:1], [1])[0, :12].equal(whole[0, :12])


def test_the_task_drops_tokens_where_it_is_told_to() -> None:
    config = Config.model_validate({"model": {"text": TEXT}, "data": {"augment": {"drop_tokens": 0.5}}})
    text = build_task(config, ALONE).views.texts(["one two three four"], [1])["text"]
    assert int((text == 49407).int().argmax()) == 3
    assert isinstance(text, torch.Tensor)
