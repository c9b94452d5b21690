"""`intern-trainer data`: words to settings and shards, and a whole round from pictures to a checked set."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
from intern_trainer import cli, cli_data
from intern_trainer.config.schema import Source
from intern_trainer.data import catalogue, sources

from tests.unit.trainer.data.shards import ALONE, picture, write_shards


def test_words_are_shards_or_settings_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location = write_shards(tmp_path / "year=2026", [3])  # an equals sign makes no setting of a path
    assert cli.main(["data", "check", "--workers", "1", location, "data.max_pixels=300"]) == 1
    assert cli.main(["data", "check", "data.max_pixels=400", location, "--workers", "1"]) == 0
    assert "bad: 0 of 3 samples" in capsys.readouterr().out


def test_without_shards_the_recipes_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "index", "data.train=embedded:test", "--workers", "1"]) == 0
    assert "indexed: 1 shard(s), 214 samples" in capsys.readouterr().out


def test_a_round_through_all_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    for n in range(3):
        (tmp_path / "in" / "cat" / f"{n}.png").write_bytes(picture(n))
    out = str(tmp_path / "out")
    assert cli.main(["data", "shard", str(tmp_path / "in"), "--to", out, "--shuffle", "0", "--workers", "1"]) == 0
    assert cli.main(["data", "index", f"{out}/*.tar", "--workers", "1"]) == 0
    assert cli.main(["data", "check", f"{out}/*.tar", "--workers", "1", "--jsonl", f"{out}/bad.jsonl"]) == 0
    assert (
        cli.main(["data", "stats", f"{out}/*.tar", "--workers", "1", "--sample", "2", "--json", f"{out}/s.json"]) == 0
    )
    assert cli.main(["data", "preview", f"{out}/*.tar", "--workers", "1", "--to", f"{out}/page.html"]) == 0
    assert {"bad.jsonl", "s.json", "page.html"} < {path.name for path in Path(out).iterdir()}


def test_mistakes_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", f"{tmp_path}/*.tar"]) == 3
    assert "matches no file" in capsys.readouterr().err
    assert cli.main(["data", "stats", "embedded:train", "data.max_pixel=3"]) == 2
    assert "unknown key data.max_pixel" in capsys.readouterr().err
    assert cli.main(["data", "stats", "embedded:train", "data.train.0.weight=3"]) == 2  # a setting, though none that is
    (tmp_path / "file").touch()
    for option in (["stats", "--json"], ["check", "--jsonl"], ["preview", "--to"]):
        unwritable = f"{tmp_path}/file/x"
        assert cli.main(["data", *option, unwritable, "embedded:test", "--workers", "1"]) == 5
        assert f"{unwritable} cannot be written" in capsys.readouterr().err
    for wrong in (["stats", "--sample", "0"], ["shard", "x"], ["check", "--jsn", "x"], ["stats", "--workers", "many"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", *wrong])
        assert ended.value.code == 2


def test_indexes_that_cannot_be_kept_are_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    location = write_shards(tmp_path / "set", [3, 3])
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # beside the shards
    command = ["data", "index", location, "--workers", "1", "--index-dir"]
    assert cli.main([*command, f"{tmp_path}/file/x"]) == 5
    assert "2 of the indexes cannot be kept" in capsys.readouterr().err
    assert cli.main(["data", "check", *command[2:], f"{tmp_path}/file/x"]) == 0
    assert cli.main([*command, str(tmp_path / "indexes")]) == 0
    monkeypatch.setattr(sources, "INDEX_AT_START", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalogue, "write_atomically", full)
    assert cli.main([*command, str(tmp_path / "indexes")]) == 5
    assert "the catalogue cannot be kept" in capsys.readouterr().err


def test_each_source_of_a_recipe_gets_its_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "INDEX_AT_START", 1)
    places = [{"location": write_shards(tmp_path / name, [3, 3])} for name in ("a", "b")]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"data": {"train": places}}))
    assert cli.main(["data", "index", "--config", str(recipe), "--workers", "1"]) == 0
    found = sources.catalogues([Source(**place) for place in places], None, ALONE)
    assert [source.total for source in found] == [6, 6]


def test_ctrl_c_ends_without_a_stack_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(chosen: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_data, "_run", interrupted)
    assert cli.main(["data", "index", "embedded:test"]) == 130
    assert "interrupted" in capsys.readouterr().err
