"""Where chunks of remote shards are kept: in the memory of one process, or in a folder for all processes of a node.

name      of a chunk: never given to other bytes
          of this form: 32 hexadecimal digits-NUMBER-NUMBER
fetch     gives the chunk's bytes; called once for all who ask at the same time
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from intern_trainer.data.kept import Kept
from intern_trainer.errors import DataError

Fetch = Callable[[], bytes]
FOLDER = "intern-trainer-chunks"
"""Of `data.cache_dir`, which may hold other things, too."""
_OURS = re.compile(r"[0-9a-f]{32}-\d+-\d+(\.part)?")
ABANDONED = 3600
"""Seconds after which the part of a chunk is nobody's any more."""


class Chunks(Protocol):
    def read(self, name: str, offset: int, size: int, fetch: Fetch, prepared: bool) -> bytes:
        """A piece of the chunk; fetched if it is not there. `prepared`: by `prepare`, for this read."""

    def prepare(self, name: str, fetch: Fetch) -> None:
        """One more `read` of this chunk will come: see that it is there or on its way."""


class MemoryChunks:
    """At most `limit` bytes, not counting those on their way; but chunks stay while reads of them are to come."""

    def __init__(self, limit: int) -> None:
        self._to_come: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._kept: Kept[str, bytes] = Kept(limit, len, needed=lambda name: self._to_come[name] > 0)

    def read(self, name: str, offset: int, size: int, fetch: Fetch, prepared: bool) -> bytes:
        piece = self._kept.get(name, fetch)[offset : offset + size]
        if prepared:
            self._count(name, -1)
        return piece

    def prepare(self, name: str, fetch: Fetch) -> None:
        self._count(name, 1)
        if name not in self._kept:
            self._kept.get(name, fetch)

    def _count(self, name: str, change: int) -> None:
        with self._lock:
            self._to_come[name] += change
            if not self._to_come[name]:
                del self._to_come[name]


class FolderChunks:
    """At most `limit` bytes in files of FOLDER, a file a chunk; the ones not used for the longest time go first.

    Any number of processes of one machine share it, and may die at any moment: a chunk is written into NAME.part, whose
    lock tells the others to wait instead of fetching it too, and then renamed. The file `used` holds the sum of sizes;
    it is counted anew whenever the folder is full. A network file system is no place for it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder / FOLDER, limit
        with self._usable():
            self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, offset: int, size: int, fetch: Fetch, prepared: bool) -> bytes:
        while True:
            piece = self._piece(name, offset, size)
            if piece is None:
                chunk = self._fetch(name, fetch, wait=True)
                piece = None if chunk is None else chunk[offset : offset + size]
            if piece is not None:
                return piece

    def prepare(self, name: str, fetch: Fetch) -> None:
        if self._piece(name, 0, 0) is None:
            self._fetch(name, fetch, wait=False)

    def _piece(self, name: str, offset: int, size: int) -> bytes | None:
        with self._usable():
            try:
                descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                os.utime(descriptor)  # used now
                piece = os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
            if len(piece) < size:  # the machine went down before all of it was on the disk
                (self._folder / name).unlink(missing_ok=True)
                return None
            return piece

    def _fetch(self, name: str, fetch: Fetch, wait: bool) -> bytes | None:
        """The chunk; None where another fetches it (`wait=False`) or has done so while this one waited."""
        whole, part = self._folder / name, self._folder / f"{name}.part"
        with self._usable(), open(part, "ab") as file:  # what `fetch` raises is a DataError
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return None
            if not _is_file(file.fileno(), part):
                return None
            try:
                if whole.exists():  # made between our look and our `open`
                    part.unlink(missing_ok=True)
                    return None
                os.utime(file.fileno())  # not abandoned any more
                content = fetch()
                file.truncate(0)
                file.write(content)
                file.flush()
                self._make_room(len(content))
                with suppress(FileNotFoundError):  # taken for abandoned all the same: then it is not kept
                    os.replace(part, whole)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            return content

    def _make_room(self, size: int) -> None:
        with open(self._folder / "used", "a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.seek(0)
            known = ledger.read()
            used = int(known) if known else self._limit
            if used + size > self._limit:
                used = self._drop_oldest(self._limit * 9 // 10 - size)
            ledger.truncate(0)
            ledger.write(str(used + size).encode())

    def _drop_oldest(self, target: int) -> int:
        """Down to `target` bytes; gives what is left."""
        found = []
        for entry in os.scandir(self._folder):
            if not _OURS.fullmatch(entry.name):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if entry.name.endswith(".part"):
                if time.time() - status.st_mtime > ABANDONED:
                    Path(entry.path).unlink(missing_ok=True)
            else:
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= target:
                break
            Path(path).unlink(missing_ok=True)
            used -= size
        return used

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"data.cache_dir {self._folder.parent} cannot be used: {error.strerror or error}",
                "chunks of remote shards are kept there",
                "another data.cache_dir, a smaller data.cache_gb, or none: they are then kept in memory",
            ) from error


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
