"""Chunks in memory and in a folder: fetched once, within the limit, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from intern_trainer.data.cache import ABANDONED, FOLDER, Chunks, FolderChunks, MemoryChunks
from intern_trainer.data.kept import Kept
from intern_trainer.errors import DataError

SIZE = 100


def content(name: str) -> bytes:
    return name.encode().ljust(SIZE, b".")


def named(number: int) -> str:
    return f"{number:032x}-100-0"


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / FOLDER).iterdir() if path.name != "used")


def age(path: Path) -> None:
    os.utime(path, (path.stat().st_mtime - ABANDONED - 1,) * 2)


@pytest.fixture(params=["memory", "folder"])
def chunks(request: pytest.FixtureRequest, tmp_path: Path) -> Chunks:
    return MemoryChunks(10 * SIZE) if request.param == "memory" else FolderChunks(tmp_path, 10 * SIZE)


def test_of_many_who_ask_at_once_one_fetches(chunks: Chunks) -> None:
    fetched, go = [], threading.Barrier(4)

    def ask(number: int) -> bytes:
        def fetch() -> bytes:
            fetched.append(number)
            return content("a")

        go.wait()
        return chunks.read("a", 0, 3, fetch, False)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {b"a.."}
    assert len(fetched) == 1


def test_a_failed_fetch_is_told_and_made_again(chunks: Chunks) -> None:
    def fails() -> bytes:
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        chunks.read("a", 0, 1, fails, False)
    assert chunks.read("a", 0, 1, lambda: content("a"), False) == b"a"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    chunks, folder = FolderChunks(tmp_path, 10 * SIZE), tmp_path / FOLDER
    for number in range(10):
        chunks.read(named(number), 0, 1, lambda n=number: content(f"c{n}"), False)
        os.utime(folder / named(number), ns=(number, number))
    chunks.read(named(0), 0, 1, lambda: pytest.fail("is there"), False)
    for number in (20, 21, 22):
        chunks.read(named(number), 0, 1, lambda: content("new"), False)
        assert sizes(tmp_path) <= 10 * SIZE
    kept = {path.name for path in folder.iterdir()}
    assert {named(n) for n in (0, 20, 21, 22)} <= kept
    assert not {named(1), named(2)} & kept


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    foreign = [tmp_path / "thesis.docx", tmp_path / f"{named(1)}", tmp_path / FOLDER / "notes.txt"]
    chunks = FolderChunks(tmp_path, 10 * SIZE)
    (tmp_path / FOLDER / "folder").mkdir()
    for path in foreign:
        path.write_bytes(bytes(20 * SIZE))
    for number in range(30):
        chunks.read(named(number), 0, 1, lambda: content("c"), False)
    assert all(path.exists() for path in foreign)


def test_a_chunk_that_a_crash_cut_short_is_fetched_again(tmp_path: Path) -> None:
    chunks = FolderChunks(tmp_path, 10 * SIZE)
    (tmp_path / FOLDER / named(1)).write_bytes(b"ha")
    assert chunks.read(named(1), 1, 4, lambda: b"whole", False) == b"hole"
    assert chunks.read(named(1), 1, 4, lambda: pytest.fail("is there"), False) == b"hole"


def test_a_part_is_taken_over_and_lost_races_leave_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, part = FolderChunks(tmp_path, 10 * SIZE), tmp_path / FOLDER / f"{named(1)}.part"
    part.touch()
    age(part)

    def fetch(gone: bool) -> bytes:
        for number in range(10, 25):  # another makes room
            chunks.read(named(number), 0, 1, lambda: content("c"), False)
        if gone:
            part.unlink()
        return content("a")

    assert chunks.read(named(1), 0, 1, lambda: fetch(False), False) == b"a"
    assert chunks.read(named(1), 0, 1, lambda: pytest.fail("is there"), False) == b"a"
    part = tmp_path / FOLDER / f"{named(2)}.part"
    assert chunks.read(named(2), 0, 1, lambda: fetch(True), False) == b"a"
    chunks.read(named(1), 0, 1, lambda: content("a"), False)
    monkeypatch.setattr(chunks, "_piece", lambda *_: None)  # not there yet when we looked
    chunks.prepare(named(1), lambda: pytest.fail("is there"))
    assert not list((tmp_path / FOLDER).glob("*.part"))


def test_what_is_announced_stays_in_memory() -> None:
    chunks = MemoryChunks(3 * SIZE)
    chunks.prepare("wanted", lambda: content("wanted"))
    for number in range(9):
        chunks.read(f"c{number}", 0, 1, lambda: content("c"), False)
    assert chunks.read("wanted", 0, 6, lambda: pytest.fail("is there"), True) == b"wanted"
    for number in range(9):
        chunks.read(f"d{number}", 0, 1, lambda: content("d"), False)
    assert chunks.read("wanted", 0, 1, lambda: b"again", False) == b"a"


def _die_while_fetching(folder: Path) -> None:
    FolderChunks(folder, 10 * SIZE).read(named(1), 0, 1, lambda: os._exit(1), False)


def test_a_process_that_dies_while_it_fetches_holds_up_nobody(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die_while_fetching, args=(tmp_path,))
    process.start()
    process.join()
    assert (tmp_path / FOLDER / f"{named(1)}.part").exists()
    chunks = FolderChunks(tmp_path, 10 * SIZE)
    assert chunks.read(named(1), 0, 1, lambda: content("a"), False) == b"a"
    left = tmp_path / FOLDER / f"{named(2)}.part"
    left.write_bytes(b"half")
    age(left)
    for number in range(10, 30):
        chunks.read(named(number), 0, 1, lambda: content("c"), False)
    assert not left.exists()


def _fill(folder: Path, first: int) -> None:
    chunks = FolderChunks(folder, 10 * SIZE)
    for number in range(first, first + 60):
        name = named(number % 40)
        assert chunks.read(name, 0, 4, lambda name=name: content(name), False) == content(name)[:4]


def test_processes_share_a_folder_within_its_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(tmp_path, 13 * n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert 0 < sizes(tmp_path) <= 10 * SIZE


def test_a_folder_that_cannot_be_used_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir .* cannot be used"):
        FolderChunks(tmp_path / "file" / "folder", SIZE)


def test_a_chunk_of_another_user_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    chunks = FolderChunks(tmp_path, 10 * SIZE)
    chunks.read(named(1), 0, 1, lambda: content("a"), False)
    monkeypatch.setattr(os, "utime", refuse)
    with pytest.raises(DataError, match="cannot be used: Operation not permitted"):
        chunks.read(named(1), 0, 1, lambda: content("a"), False)


def test_kept_values_wait_for_each_other_and_leave_in_turn() -> None:
    kept: Kept[str, int] = Kept(2)
    assert [kept.get(key, lambda: 1) for key in "abab"] == [1] * 4
    assert kept.get("c", lambda: 3) == 3
    assert [key in kept for key in "abc"] == [False, True, True]
