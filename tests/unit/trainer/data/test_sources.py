"""Locations, indexes and remote sources."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
from intern_trainer.config.schema import Source
from intern_trainer.data import build_train_data, index, sources, storage
from intern_trainer.data.index import index_command
from intern_trainer.data.storage import Storage
from intern_trainer.errors import DataError

from tests.unit.trainer.data.shards import ALONE, WORDS, config, good, write_shard, write_shards


class Server(ThreadingHTTPServer):
    """A folder behind HTTP, with Range requests. `faults` requests fail before the next ones are answered."""

    folder: Path
    faults: int = 0
    ranges: bool = True
    stalls: bool = False
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.awake = folder, threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if self.server.stalls:
            self.server.awake.wait(60)
        path = self.server.folder / self.path.lstrip("/")
        if not path.exists():
            return self.send_error(404)
        if self.server.faults > 0:
            self.server.faults -= 1
            return self.send_error(503)
        content, status = path.read_bytes(), 200
        total = len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            first, last = int(wanted[1]), min(int(wanted[2]), total - 1)
            content, status = content[first : last + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"v1"')
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))
    with Server(tmp_path / "served") as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.awake.set()
        found.shutdown()
        thread.join()


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


def test_many_shards_need_their_index_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "INDEX_AT_START", 3)
    location = write_shards(tmp_path, [5] * 4)
    with pytest.raises(DataError, match="the 4 shards of set have no catalogue") as error:
        ids(location)
    assert "intern-trainer data index" in error.value.fix
    assert index_command([location]) == 0
    assert len(ids(location)) == 40


def test_the_index_command_names_bad_shards_and_does_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path, [5, 5])
    (tmp_path / "002.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"002\.tar holds no samples"):
        index_command([f"{tmp_path}/*.tar"])
    assert "2 shards with 10 samples; 2 indexes made" in capsys.readouterr().out


def test_names_of_sources_differ() -> None:
    found = [
        Source(location=[place])
        for place in ("/x/cc/0.tar", "/y/cc/0.tar", "embedded:train", "s3://bucket/laion/{0..9}.tar")
    ]
    assert sources._names(found) == ["cc", "cc-2", "embedded-train", "laion"]


def test_a_made_up_name_is_never_one_that_was_given() -> None:
    three = [Source(location=["a/x.tar"]), Source(location=["b/a/x.tar"]), Source(location=["c.tar"], name="a-2")]
    assert sources._names(three) == ["a", "a-3", "a-2"]


@pytest.mark.parametrize("workers", [0, 2])
def test_http_gives_what_the_disk_gives(server: Server, tmp_path: Path, workers: int) -> None:
    location = write_shards(server.folder, [9, 12])
    address = f"http://127.0.0.1:{server.server_port}/{{000..001}}.tar"
    remote = ids(address, workers=workers, index_dir=tmp_path / "indexes")
    assert remote == ids(location)
    assert len(list((tmp_path / "indexes").iterdir())) == 2


def test_a_server_that_fails_now_and_then_costs_no_sample(server: Server, tmp_path: Path) -> None:
    location = write_shards(server.folder, [9, 12])
    server.faults = 2
    address = f"http://127.0.0.1:{server.server_port}/{{000..001}}.tar"
    found = build_train_data(config({"location": address, "name": "set"}, index_dir=tmp_path / "i"), ALONE, WORDS)
    server.faults = 2
    names = [id for step in islice(found.batches(0), 5) for batch in step for id in batch.ids]
    assert names == ids(location)
    assert found.report()["bad"] == 0


def test_remote_faults_are_messages(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(server.folder, [20])
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(DataError, match=r"nowhere\.tar cannot be opened"):
        ids(f"{address}/nowhere.tar", index_dir=tmp_path / "i")
    server.faults = 1000
    with pytest.raises(DataError, match=r"000\.tar cannot be reached: .*503"):
        ids(f"{address}/000.tar", index_dir=tmp_path / "i")
    server.faults, server.ranges = 0, False
    with pytest.raises(DataError, match="the server sent"):
        ids(f"{address}/000.tar", index_dir=tmp_path / "i")
    server.stalls = True
    monkeypatch.setattr(storage, "READ_SECONDS", 0.1)
    with pytest.raises(DataError, match=r"000\.tar cannot be reached: .*[Tt]imeout"):
        ids(f"{address}/000.tar", index_dir=tmp_path / "i2")
    server.awake.set()
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="cannot be reached"):
        ids(f"{address}/000.tar", index_dir=tmp_path / "i3")


def test_other_file_systems_of_fsspec(tmp_path: Path) -> None:
    import fsspec

    write_shards(tmp_path, [9, 12])
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    assert ids("memory://bucket/*.tar", index_dir=tmp_path / "i") == ids(f"{tmp_path}/*.tar")
    with pytest.raises(DataError, match="bogus"):
        ids("bogus://bucket/0.tar")


def test_a_shard_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    location = write_shards(tmp_path, [20])
    found = build_train_data(config(location), ALONE, WORDS)
    next(found.batches(0))
    os.truncate(tmp_path / "000.tar", 700)
    with pytest.raises(DataError, match=r"000\.tar"):
        next(found.batches(1))
