"""Locations, indexes and catalogues."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
from intern_trainer.config.schema import Source
from intern_trainer.data import build_train_data, catalogue, index, sources
from intern_trainer.data.catalogue import ShardNames
from intern_trainer.data.storage import Storage
from intern_trainer.data.tools.index import index_command
from intern_trainer.errors import DataError

from tests.unit.trainer.data.shards import ALONE, WORDS, config, good, write_shard, write_shards


def ids(location: str, **data: object) -> list[str]:
    found = build_train_data(config({"location": location, "name": "set"}, **data), ALONE, WORDS)
    names = [id for step in islice(found.batches(0), 5) for batch in step for id in batch.ids]
    found.close()
    return names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/d/{008..011}.tar", ["/d/008.tar", "/d/009.tar", "/d/010.tar", "/d/011.tar"]),
        ("s3://b/{a,c}/{1..2}.tar", ["s3://b/a/1.tar", "s3://b/a/2.tar", "s3://b/c/1.tar", "s3://b/c/2.tar"]),
        ("/plain.tar", ["/plain.tar"]),
    ],
)
def test_brace_ranges(pattern: str, expected: list[str]) -> None:
    assert sources.expand(Storage(), [pattern]) == expected


def test_globs_are_sorted_and_must_match(tmp_path: Path) -> None:
    write_shards(tmp_path, [1] * 3)
    assert sources.expand(Storage(), [f"{tmp_path}/*.tar"]) == [f"{tmp_path}/{n:03d}.tar" for n in range(3)]
    with pytest.raises(DataError, match=r"x\*\.tar matches no file"):
        sources.expand(Storage(), [f"{tmp_path}/x*.tar"])
    with pytest.raises(DataError, match="counts down"):
        sources.expand(Storage(), ["{9..1}.tar"])
    mixed = Source(location=[f"{tmp_path}/*.tar", "s3://b/1.tar"], name="set")
    with pytest.raises(DataError, match="set names files and addresses"):
        sources.catalogues([mixed], None, ALONE)


def test_an_index_is_kept_beside_the_shard_and_made_anew_when_that_changes(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [good(n) for n in range(3)])
    store = Storage()
    made = index.find_or_build(store, str(shard), None)
    assert Path(f"{shard}.index.npz").exists()
    kept = index.find(store, str(shard), None)
    assert kept is not None
    assert [kept.key(n) for n in range(3)] == [made.key(n) for n in range(3)] == ["000000", "000001", "000002"]
    offset, size = kept.members(1)["txt"]
    assert store.read(str(shard), offset, size) == b"caption 1"
    write_shard(shard, [good(n) for n in range(4)])
    assert index.find(store, str(shard), None) is None
    assert len(index.find_or_build(store, str(shard), None)) == 4
    Path(f"{shard}.index.npz").write_bytes(b"half an index")
    assert len(index.find_or_build(store, str(shard), None)) == 4


def test_where_indexes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_shard(tmp_path / "s.tar", [good(0)])
    monkeypatch.setattr(index.os, "access", lambda *_: False)  # root may write anywhere
    index.find_or_build(Storage(), str(shard), tmp_path / "indexes")
    assert not Path(f"{shard}.index.npz").exists()
    (kept,) = (tmp_path / "indexes").iterdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index.find_or_build(Storage(), str(shard), None)
    assert (tmp_path / "cache" / "intern-trainer" / "index" / kept.name).exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_many_shards_need_their_catalogue_and_then_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    monkeypatch.setattr(sources, "INDEX_AT_START", 3)
    location, index_dir = write_shards(tmp_path / "set", [5] * 4), tmp_path / "i"
    with pytest.raises(DataError, match="the 4 shards of set have no catalogue") as error:
        ids(location, index_dir=index_dir)
    assert f"intern-trainer data index '{location}' --index-dir {index_dir}" in error.value.fix
    if elsewhere:
        monkeypatch.setattr(catalogue.os, "access", lambda *_: False)
    assert index_command([location], index_dir) == 0
    assert len(list((index_dir if elsewhere else tmp_path / "set").glob("catalogue-*.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(sources, "expand", None)
        patch.setattr(sources.index, "find_or_build", None)
        (found,) = sources.catalogues([Source(location=[location], name="set")], index_dir, ALONE)
    monkeypatch.setattr(sources, "INDEX_AT_START", 1000)
    (counted,) = sources.catalogues([Source(location=[location], name="set")], index_dir, ALONE)
    assert found.fingerprint() == counted.fingerprint()
    assert list(found.shards) == list(counted.shards)
    monkeypatch.setattr(sources, "INDEX_AT_START", 3)
    assert len(set(ids(location, index_dir=index_dir))) == 20


def test_a_shard_that_changed_since_its_catalogue_was_made_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "INDEX_AT_START", 1)
    location = write_shards(tmp_path / "set", [5, 5])
    index_command([location])
    write_shard(tmp_path / "set" / "001.tar", [good(n) for n in range(6)])
    with pytest.raises(DataError, match=r"001\.tar holds 6 samples in .* held 5"):
        ids(location)
    larger = [{**good(n), "json": b"{}"} for n in range(5)]
    write_shard(tmp_path / "set" / "001.tar", larger)
    with pytest.raises(DataError, match=r"001\.tar holds 5 samples in \d+ bytes; .* held 5 in \d+"):
        ids(location)


@pytest.mark.parametrize(
    "names",
    [["a"], ["a", "a"], ["x/é1.tar", "x/è2.tar"], ["1", "11"], ["a1a", "a2a", "aa"], ["s3://b/9.tar", "/b.tar"]],
)
def test_names_of_shards_come_back_as_they_were(names: list[str]) -> None:
    kept = ShardNames.of(names)
    assert list(kept) == names == [kept[number] for number in range(len(kept))]


def test_the_index_command_names_bad_shards_and_does_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path, [5, 5])
    (tmp_path / "002.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"002\.tar holds no samples"):
        index_command([f"{tmp_path}/*.tar"])
    assert "indexed: 2 shard(s), 10 samples" in capsys.readouterr().out


def test_names_of_sources_differ() -> None:
    found = [
        Source(location=[place])
        for place in ("/x/cc/0.tar", "/y/cc/0.tar", "embedded:train", "s3://bucket/laion/{0..9}.tar")
    ]
    assert sources._names(found) == ["cc", "cc-2", "embedded-train", "laion"]


def test_a_made_up_name_is_never_one_that_was_given() -> None:
    three = [Source(location=["a/x.tar"]), Source(location=["b/a/x.tar"]), Source(location=["c.tar"], name="a-2")]
    assert sources._names(three) == ["a", "a-3", "a-2"]


def test_a_shard_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    location = write_shards(tmp_path, [20])
    found = build_train_data(config(location), ALONE, WORDS)
    next(found.batches(0))
    os.truncate(tmp_path / "000.tar", 700)
    with pytest.raises(DataError, match=r"000\.tar"):
        next(found.batches(1))
