"""`data check` finds what training would skip, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from intern_trainer.data.tools.check import check

from tests.unit.trainer.data.shards import config, good, write_shard, write_shards
from tests.unit.trainer.data.test_bad_input import BAD


@pytest.mark.parametrize("workers", [1, 2])
def test_every_kind_of_bad_sample_is_named(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "a.tar", [good(n) for n in range(4)])
    write_shard(tmp_path / "b.tar", [good(0), *(sample for sample, _ in BAD.values())])
    location = f"{tmp_path}/{{a,b}}.tar"
    assert check([location], config(location), workers, tmp_path / "bad.jsonl") == 1
    found = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [one["kind"] for one in found] == [kind.strip() for kind in BAD]
    assert [one["id"] for one in found] == [f"b/{number:06d}" for number in range(1, 1 + len(BAD))]
    assert {one["shard"] for one in found} == {f"{tmp_path}/b.tar"}
    shown = capsys.readouterr().out
    assert f"bad: {len(BAD)} of {5 + len(BAD)} samples, 0 of 2 shard(s)" in shown
    assert "  2 picture corrupt" in shown
    assert f"b/{list(BAD).index('caption empty') + 1:06d}: caption is empty (txt)" in shown


def test_good_shards_give_0_and_the_recipes_rules_hold(tmp_path: Path) -> None:
    location = write_shards(tmp_path, [3, 2])
    assert check([location], config(location), 1) == 0
    assert check([location], config(location, max_pixels=300), 1) == 1


def test_truncated_and_missing_shards_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location = write_shards(tmp_path, [4, 4, 4])
    assert check([location], config(location), 1) == 0
    whole = (tmp_path / "001.tar").read_bytes()
    (tmp_path / "001.tar").write_bytes(whole[: len(whole) // 2])  # though its index is there
    (tmp_path / "002.tar").unlink()
    assert check([location], config(location), 1, tmp_path / "bad.jsonl") == 1
    shown = capsys.readouterr().out
    assert "001.tar is cut short" in shown
    assert "002.tar cannot be opened" in shown
    assert "2 of 3 shard(s)" in shown
    assert [json.loads(line)["kind"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == [
        "shard unusable",
        "shard unusable",
    ]
