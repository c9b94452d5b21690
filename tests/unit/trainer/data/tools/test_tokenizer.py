"""`intern-trainer data tokenizer`: tokens of one's own captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from intern_trainer import cli
from intern_zoo.text import tokenizer

from tests.unit.trainer.data.shards import picture, write_shard

CAPTIONS = {"en": ["a red house", "houses"], "de": "ein rotes Haus", "ja": "赤い家と青い家"}


@pytest.fixture
def shard(tmp_path: Path) -> str:
    sample = {"png": picture(), "json": json.dumps({"captions": CAPTIONS}).encode()}
    write_shard(tmp_path / "s.tar", [sample] * 20 + [{"png": picture()}])
    return str(tmp_path / "s.tar")


def test_it_learns_from_all_captions_in_all_languages(
    shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "own"
    assert cli.main(["data", "tokenizer", shard, "--to", str(to), "--vocab", "320", "--workers", "1"]) == 0
    assert "from 80 captions" in capsys.readouterr().out
    words, clip = tokenizer(32, to), tokenizer(32)

    def count(text: str, one) -> int:
        return one([text])[0].tolist().index(one.eot_token_id)

    assert 260 < words.vocab_size <= 320
    assert count(CAPTIONS["ja"], words) < count(CAPTIONS["ja"], clip)
    assert count("never seen: žluťoučký kůň", words) > 8  # by its bytes
    ids = words(["A red HOUSE"])[0].tolist()
    assert words.backend.decode(ids).split() == ["a", "red", "house"]


def test_languages_may_be_chosen(shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--to", str(tmp_path / "own"), "--vocab", "300", "--workers", "1"]
    assert cli.main(["data", "tokenizer", shard, *options, "data.languages=[de, en]"]) == 0
    assert "from 60 captions" in capsys.readouterr().out


def test_mistakes(shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "tokenizer", shard, "--to", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["data", "tokenizer", shard, "--to", str(tmp_path / "x"), "--vocab", "100"]) == 2
    assert "256 bytes" in capsys.readouterr().err
    (tmp_path / "file").touch()
    unwritable = ["--to", str(tmp_path / "file" / "x"), "--vocab", "300"]
    assert cli.main(["data", "tokenizer", shard, *unwritable, "--workers", "1"]) == 5
    assert "tokenizer.json cannot be written" in capsys.readouterr().err
    assert (
        cli.main(["data", "tokenizer", shard, "--to", str(tmp_path / "x"), "data.caption_keys=md", "--workers", "1"])
        == 3
    )
    assert "no captions were found" in capsys.readouterr().err
