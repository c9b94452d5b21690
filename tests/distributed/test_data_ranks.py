"""The readers on real ranks: one sequence of samples, cut over them; an error is one on all."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.spawn import run_ranks
from tests.unit.trainer.data.shards import good, picture, write_shard, write_shards

TARGET = "tests.distributed.data_worker:read"


def test_two_ranks_read_what_one_reads(tmp_path: Path) -> None:
    write_shards(tmp_path, [13, 9, 16])
    write_shard(tmp_path / "000.tar", [good(n) if n != 4 else {"png": picture()} for n in range(13)])
    payload = {"train": f"{tmp_path}/*.tar", "workers": 0, "step": 3}
    (alone,) = run_ranks(TARGET, 1, payload)
    first, second = run_ranks(TARGET, 2, {**payload, "workers": 1})
    assert [a + b for a, b in zip(first["steps"], second["steps"], strict=True)] == alone["steps"]
    assert first["evaluated"] + second["evaluated"] == alone["evaluated"]
    assert len(set(alone["evaluated"])) == 37
    assert first["report"] == second["report"] == {"read": 38, "bad": 1, "bad_by_kind": {"caption missing": 1}}
    assert first["fingerprint"] == second["fingerprint"] == alone["fingerprint"]


def test_a_shard_that_one_rank_cannot_read_stops_both(tmp_path: Path) -> None:
    write_shards(tmp_path, [9, 9])
    payload = {"train": [{"location": [f"{tmp_path}/000.tar", f"{tmp_path}/nowhere.tar"]}], "workers": 0, "step": 0}
    first, second = run_ranks(TARGET, 2, payload)
    assert first["error"] == second["error"]
    assert "nowhere.tar cannot be opened" in first["error"]
