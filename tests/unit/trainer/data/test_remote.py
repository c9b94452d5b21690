"""Remote shards: what the disk gives, each byte once, through the faults of real servers."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from intern_trainer.config.schema import Config, Data
from intern_trainer.data import TrainData, build_train_data, index, read_ahead, storage
from intern_trainer.data.cache import MemoryChunks
from intern_trainer.data.catalogue import Catalogue, ShardNames
from intern_trainer.data.storage import Storage
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks

from benchmarks.object_store import Behaviour, ObjectStore, folder, serving
from tests.unit.trainer.data.shards import ALONE, WORDS, config, write_shards


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))
    with serving(folder(tmp_path / "served"), Behaviour()) as found:
        yield found


def settings(location: str, folder: Path, **data: object) -> Config:
    return config({"location": location, "name": "set"}, index_dir=folder / "indexes", **data)


def ids(data: TrainData, steps: int = 5) -> list[str]:
    names = [id for step in islice(data.batches(0), steps) for batch in step for id in batch.ids]
    data.close()
    assert data.report()["bad"] == 0
    return names


def read(location: str, folder: Path, steps: int = 5, ranks: Ranks = ALONE, **data: object) -> list[str]:
    return ids(build_train_data(settings(location, folder, **data), ranks, WORDS), steps)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep", ["memory", "folder", "nowhere"])
def test_http_gives_what_the_disk_gives(
    store: ObjectStore, tmp_path: Path, workers: int, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "CHUNK", 1 << 12)
    location = write_shards(tmp_path / "served", [9, 12])
    if keep == "nowhere":
        monkeypatch.setattr(read_ahead.Plan, "chunks", lambda _: None)
    where = {"cache_dir": tmp_path / "cache"} if keep == "folder" else {}
    remote = read(f"{store.address}/{{000..001}}.tar", tmp_path, workers=workers, **where)
    assert remote == read(location, tmp_path)
    assert len(list((tmp_path / "indexes").iterdir())) == 2
    assert (tmp_path / "cache").exists() == (keep == "folder")


@pytest.mark.parametrize("kind", ["fails", "cuts", "stalls"])
def test_faults_cost_no_sample(store: ObjectStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "CHUNK", 1 << 12)
    location = write_shards(tmp_path / "served", [9, 12])
    store.behaviour.fail_next = 2
    data = build_train_data(settings(f"{store.address}/{{000..001}}.tar", tmp_path), ALONE, WORDS)
    monkeypatch.setattr(storage, "READ_SECONDS", 0.2)
    store.behaviour = Behaviour(chance=random.Random(1), **{kind: 0.2})
    store.faults = 0
    assert ids(data) == read(location, tmp_path)
    assert store.faults >= 2


@pytest.mark.parametrize("kind", ["fails", "cuts", "stalls"])
def test_indexes_are_made_through_faults(
    store: ObjectStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BLOCK", 1 << 12)
    monkeypatch.setattr(storage, "READ_SECONDS", 0.2)
    write_shards(tmp_path / "served", [30])
    local = index.build(Storage(), str(tmp_path / "served" / "000.tar"))
    reader, address = Storage(), f"{store.address}/000.tar"
    reader.stamp(address)
    store.behaviour = Behaviour(chance=random.Random(1), **{kind: 0.2})
    made = index.build(reader, address)
    reader.close()
    assert store.faults >= 2
    assert np.array_equal(made.offset, local.offset)


def test_remote_mistakes_are_messages(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "served", [20])
    with pytest.raises(DataError, match=r"nowhere\.tar cannot be opened"):
        read(f"{store.address}/nowhere.tar", tmp_path)
    store.behaviour.fail_next = 1000
    with pytest.raises(DataError, match=r"000\.tar cannot be reached: .*503.* \(asked 3 times\)"):
        read(f"{store.address}/000.tar", tmp_path)
    store.behaviour = Behaviour(ranges=False)
    with pytest.raises(DataError, match="the server sent"):
        read(f"{store.address}/000.tar", tmp_path)
    monkeypatch.setattr(storage, "READ_SECONDS", 0.1)
    store.behaviour = Behaviour(stalls=1.0)
    with pytest.raises(DataError, match=r"000\.tar cannot be reached: .*[Tt]imeout"):
        read(f"{store.address}/000.tar", tmp_path / "2")
    store.closing.set()
    store.shutdown()
    store.server_close()
    with pytest.raises(DataError, match="cannot be reached"):
        read(f"{store.address}/000.tar", tmp_path / "3")


def test_each_byte_is_fetched_once(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of 400 samples of which a worker holds two windows of 20 for each of its two lanes at a time."""
    monkeypatch.setattr(read_ahead, "CHUNK", 1 << 12)
    location = write_shards(tmp_path / "served", [80] * 5)
    remote = settings(f"{store.address}/{{000..004}}.tar", tmp_path, lanes=2, shuffle_window=20)
    data = build_train_data(remote, ALONE, WORDS)
    whole = sum(int(source.sizes.sum()) for source in data._sources)
    assert data._reads.bytes < whole / 3
    store.sent = store.requests = 0
    found = ids(data, 50)
    assert sorted(found) == sorted(set(found))
    next_epoch = 2 * 20 * whole / 400  # read ahead
    assert store.sent < 1.03 * (whole + next_epoch)
    assert found == read(location, tmp_path, 50, lanes=2, shuffle_window=20)


def test_ranks_that_share_lanes_share_a_folder(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "CHUNK", 1 << 12)
    write_shards(tmp_path / "served", [30, 30])
    shared = settings(f"{store.address}/{{000..001}}.tar", tmp_path, lanes=1, cache_dir=tmp_path / "cache")
    sources = build_train_data(shared, ALONE, WORDS)._sources
    for rank in range(2):
        before = store.sent
        data = TrainData(shared, Ranks(rank, 2, 0, ALONE.device), WORDS, sources)
        ids(data, 16)
        assert (store.sent == before) == (rank == 1)


def test_a_foreign_caption_takes_no_chunk(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "CHUNK", 1 << 20)
    write_shards(tmp_path / "served", [100] * 4)
    chunks, read = set[str](), MemoryChunks.read
    monkeypatch.setattr(MemoryChunks, "read", lambda self, name, *rest: (chunks.add(name), read(self, name, *rest))[1])
    data = build_train_data(
        settings(f"{store.address}/{{000..003}}.tar", tmp_path, lanes=1, shuffle_captions=True), ALONE, WORDS
    )
    ids(data, 2)
    assert len(chunks) <= 2  # of the shards that two windows lie in; the captions are of all four


def catalogue(shards: int, each: int, size: int) -> Catalogue:
    names = ShardNames.of(f"s3://b/{n}.tar" for n in range(shards))
    return Catalogue("set", 1.0, names, np.full(shards, each), np.full(shards, each * size))


def test_what_a_worker_holds_is_planned(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    source, four = [catalogue(1000, 10_000, 50_000)], Ranks(0, 4, 0, ALONE.device)
    plan = read_ahead.plan(source, Data(lanes=64), [4] * 16, four)
    assert plan.bytes == 2 * 4 * (2048 * 50_000 + read_ahead.CHUNK)
    assert plan.shards == 2 * 4 * 2
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert read_ahead.plan(source, Data(lanes=64), [8] * 32, four).bytes
        assert "each lane is read by 4.0 workers" in caplog.messages[-1]
        assert read_ahead.plan(source, Data(lanes=64, read_ahead_mb=800), [4] * 16, four).chunks() is None
        assert "data.read_ahead_mb=846" in caplog.messages[-1]
    with pytest.raises(DataError, match=r"4\.3 GB on a node; data\.cache_gb is 3") as error:
        read_ahead.plan(source, Data(lanes=64, cache_dir=tmp_path, cache_gb=3), [4] * 16, four)
    assert "data.cache_gb=5" in error.value.fix
    assert read_ahead.plan(source, Data(lanes=64, cache_dir=tmp_path, cache_gb=5), [4] * 16, four).chunks()


def test_rows_are_announced_ahead_but_not_all_at_once() -> None:
    log: list[str] = []
    for row in read_ahead.announced(iter(range(6)), lambda row: log.append(f"announce {row}"), 2, lambda _: 1):
        log.append(f"give {row}")
    assert log[:3] == ["announce 0", "announce 1", "give 0"]
    assert [line for line in log if "give" in line] == [f"give {n}" for n in range(6)]
    assert log.index("give 2") > log.index("announce 4")


def test_samples_are_announced_ahead_whatever_the_batch() -> None:
    held, most, ahead = 0, 0, 32

    def announce(size: int) -> None:
        nonlocal held, most
        held += size
        most = max(most, held)

    given = []
    for size in read_ahead.announced(iter([4] * 40 + [16] * 40 + [4] * 40), announce, ahead, lambda size: size):
        held -= size
        given.append(size)
    assert given == [4] * 40 + [16] * 40 + [4] * 40
    assert ahead < most <= ahead + 16


def test_ranks_that_serve_different_lanes_plan_alike(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 lanes in three ranks of two workers each some serve eleven, others twelve."""
    write_shards(tmp_path / "served", [100, 100])
    shared = settings(f"{store.address}/{{000..001}}.tar", tmp_path, lanes=64, global_batch=192, workers=2)
    sources = build_train_data(shared, ALONE, WORDS)._sources
    plans = [TrainData(shared, Ranks(rank, 3, 0, ALONE.device), WORDS, sources)._reads for rank in range(3)]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].ahead == 12 * 8


def test_what_is_announced_twice_is_kept_for_two_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "CHUNK", 100)
    monkeypatch.setattr(Storage, "read", lambda *_: bytes(100))
    chunks = MemoryChunks(100)
    reader = read_ahead.ReadAhead(Storage(), chunks)
    extent = read_ahead.Extent("http://a/0.tar", "1", 0, 100, 100)
    for _ in range(2):
        reader.announce("sample", lambda: extent)
    for future in list(reader._announced["sample"]):
        future.result()
    assert chunks._to_come.total() == 2
    for left in (1, 0, 0):
        reader.read("sample", extent)
        assert chunks._to_come.total() == left
    reader.close()


def test_other_file_systems_of_fsspec(tmp_path: Path) -> None:
    import fsspec

    write_shards(tmp_path, [9, 12])
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    assert read("memory://bucket/*.tar", tmp_path) == read(f"{tmp_path}/*.tar", tmp_path)
    with pytest.raises(DataError, match="bogus"):
        read("bogus://bucket/0.tar", tmp_path)


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    for key, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        write_shards(tmp_path / "local", [9, 12])
        for path in (tmp_path / "local").glob("*.tar"):
            client.put_object(Bucket="bucket", Key=f"cc/{path.name}", Body=path.read_bytes())
        local = read(f"{tmp_path}/local/*.tar", tmp_path)
        assert read("s3://bucket/cc/*.tar", tmp_path, cache_dir=tmp_path / "cache") == local
        assert read("s3://bucket/cc/{000..001}.tar", tmp_path) == local
        with pytest.raises(DataError, match=r"nowhere\.tar cannot be opened"):
            read("s3://bucket/cc/nowhere.tar", tmp_path)
    finally:
        server.stop()
