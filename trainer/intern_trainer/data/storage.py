"""Bytes of shards, on disk or behind an address.

With time limits and retries: a source that does not answer is an error, never a hang.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from intern_trainer.errors import DataError

T = TypeVar("T")
CONNECT_SECONDS = 10
READ_SECONDS = 15
"""A server that sends nothing for so long has stalled: the request is given up and made again."""
REQUEST_SECONDS = 120
"""One request as a whole, which asks for a few MB: one that trickles is given up, too."""
ATTEMPTS = 8
"""Of a server that has answered before: a minute, against outages. One that never did is more likely a mistake."""
FIRST_ATTEMPTS = 3
WAITS = (0.25, 16.0)
"""Seconds before the second attempt, doubled for each further one, and their limit; half of it by chance, so that ranks
do not ask in step."""
REFUSALS = (400, 401, 403, 405, 410)
"""HTTP statuses that a server means: it is not asked again."""
OPEN_FILES = 32
BLOCK = 8 << 20
"""Bytes that a remote file is read by from its beginning to its end."""


def is_remote(location: str) -> bool:
    return "://" in location


class Storage:
    """Reads pieces of files. Made anew in every process: neither descriptors nor connections are shared over a fork."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._answered, self._closing = False, threading.Event()
        self._chance = random.Random()  # its own: the run's generators are part of its state

    def read(self, location: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; safe to call from several threads.

        Raises:
            DataError: the file is missing, shorter than that, or its server does not answer.
        """
        if not is_remote(location):
            return self._read_local(location, offset, size)
        if not size:  # HTTP has no words for a range of nothing
            return b""

        def fetch(system: Any) -> bytes:
            content = system.cat_file(location, start=offset, end=offset + size)
            if len(content) > size:
                raise DataError(
                    f"{location}: asked for {size} bytes, the server sent {len(content)}",
                    "shards are read piece by piece",
                    "use a server that answers HTTP Range requests, or copy the shards to a disk",
                )
            if len(content) < size:
                raise OSError(f"the body was cut short, {len(content)} of {size} bytes")
            return content

        return self._retry(location, fetch)

    def stamp(self, location: str) -> tuple[int, str]:
        """(size in bytes or -1, what changes with the content: modification time on disk, ETag elsewhere)."""
        if not is_remote(location):
            try:
                status = os.stat(location)
            except OSError as error:
                raise _missing(location, error) from error
            return status.st_size, f"{status.st_size}:{status.st_mtime_ns}"
        info = self._retry(location, lambda system: system.info(location))
        tag = next(
            (
                str(info[k])
                for k in ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime")
                if info.get(k)
            ),
            "",
        )
        size = info.get("size")
        return (-1 if size is None else int(size)), f"{size}:{tag}"

    def open(self, location: str, size: int) -> BinaryIO:
        """The file of so many bytes (`stamp`), to be read from its beginning to its end.

        Raises:
            DataError: as `read`; from the reads of a remote file, too.
        """
        if is_remote(location):
            return io.BufferedReader(_Remote(self, location, size), BLOCK)
        try:
            return open(location, "rb")
        except OSError as error:
            raise _missing(location, error) from error

    def whole(self, location: str) -> bytes:
        """All bytes of a small file.

        Raises:
            DataError: the file cannot be read, or its server does not answer.
        """
        if is_remote(location):
            return self._retry(location, lambda system: system.cat_file(location))
        try:
            return Path(location).read_bytes()
        except OSError as error:
            raise _missing(location, error) from error

    def glob(self, pattern: str) -> list[str]:
        """Addresses that match, sorted."""
        protocol = pattern.split("://", 1)[0]
        found = self._retry(pattern, lambda system: system.glob(pattern))
        return sorted(path if is_remote(path) else f"{protocol}://{path.lstrip('/')}" for path in found)

    def close(self) -> None:
        """Reads that wait for a server end with an error."""
        self._closing.set()
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _read_local(self, location: str, offset: int, size: int) -> bytes:
        with self._lock:  # held while reading, so that no other thread closes the descriptor
            content = os.pread(self._descriptor(location), size, offset)
        if len(content) < size:
            raise DataError(
                f"{location} ends at byte {offset + len(content)}, its index says {offset + size}",
                "shards do not change while a run reads them",
                "copy the shard again; its index is made anew by itself",
            )
        return content

    def _descriptor(self, location: str) -> int:
        if location in self._files:
            self._files.move_to_end(location)
            return self._files[location]
        try:
            descriptor = os.open(location, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise _missing(location, error) from error
        self._files[location] = descriptor
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _retry(self, location: str, action: Callable[[Any], T]) -> T:
        for attempt in itertools.count(1):
            try:
                result = action(self._system(location))
                self._answered = True
                return result
            except DataError:
                raise
            except (ImportError, ValueError) as error:
                rule = "an address begins with the name of a file system of fsspec, whose package is installed"
                raise DataError(f"{location}: {error}", rule, "correct the address, or install the package") from error
            except Exception as error:  # each file system has errors of its own
                cause = _cause(error)
                if isinstance(cause, FileNotFoundError) or _status(cause) == 404:
                    raise _missing(location, cause) from error
                last = attempt >= (ATTEMPTS if self._answered else FIRST_ATTEMPTS) or _status(cause) in REFUSALS
                if last or self._closing.wait(self._pause(attempt)):
                    reason = str(cause) or type(cause).__name__
                    raise DataError(
                        f"{location} cannot be reached: {reason} (asked {attempt} times)",
                        "every source must answer",
                        "check the address, the network and the credentials, or leave this source out of data.train",
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, attempt: int) -> float:
        first, limit = WAITS
        return min(first * 2 ** (attempt - 1), limit) * (0.5 + self._chance.random() / 2)

    def _system(self, location: str) -> Any:
        import fsspec  # only where an address is used

        protocol = location.split("://", 1)[0]
        with self._lock:
            if protocol not in self._systems:
                # cached instances may have lived in the parent process, and are not fork-safe
                options = {"skip_instance_cache": True, **_limits(protocol)}
                self._systems[protocol] = fsspec.filesystem(protocol, **options)
                self._systems[protocol].retries = 1  # s3fs would try 5 times for each of ours
            return self._systems[protocol]


class _Remote(io.RawIOBase):
    """A remote file by `Storage.read`, whose retries it has."""

    def __init__(self, storage: Storage, location: str, size: int) -> None:
        self._storage, self._location, self._size, self._at = storage, location, size, 0
        if size < 0:
            raise DataError(
                f"{location}: the server does not say its size",
                "shards are read piece by piece",
                "use a server that answers HTTP Range requests, or copy the shards to a disk",
            )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._storage.read(self._location, self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _limits(protocol: str) -> dict[str, Any]:
    """Time limits in the words of each file system."""
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol in ("s3", "s3a"):
        config = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 1}}
        return {"config_kwargs": config}
    if protocol in ("gs", "gcs"):
        return {"timeout": READ_SECONDS}
    return {}


def _status(cause: BaseException) -> int | None:
    """The HTTP status of an answer, in the words of aiohttp or botocore."""
    response = getattr(cause, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(cause, "status", None)


def _cause(error: BaseException) -> BaseException:
    """fsspec's HTTP calls whatever happens "file not found", and keeps the reason as the cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _missing(location: str, error: BaseException) -> DataError:
    reason = getattr(error, "strerror", None) or "no such file"
    rule = "every shard of a source must be there"
    return DataError(f"{location} cannot be opened: {reason}", rule, "correct the location in the configuration")
