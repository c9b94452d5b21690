"""The index of a shard: where each sample's members lie in the tar, so that any sample is one read away.

Made on first use (one rank a shard) or by `intern-trainer data index`. It lies beside the shard where that can be
written, as `X.tar.index.npz`, else in `data.index_dir` (without one: the user's cache folder) under a name made of
address, size and ETag. It is made anew when size or modification time (ETag) of the shard differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intern_trainer.data.storage import Storage, is_remote, write_atomically
from intern_trainer.errors import DataError

VERSION = 1


@dataclass(frozen=True)
class ShardIndex:
    """Members of one tar, grouped by sample.

    Attributes:
        keys [n]: bytes, the member names up to the first dot.
        first [n + 1]: sample k has members first[k] : first[k + 1].
        offset, size [m]: of each member's content, bytes. extension [m]: number in `extensions` (lower case, no dot).
        stamp: the shard's size and modification time (ETag) when this was made.
    """

    keys: np.ndarray
    first: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    extension: np.ndarray
    extensions: list[str]
    stamp: str

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def end(self) -> int:
        """Bytes of the shard up to the end of its last member."""
        return int((self.offset + self.size).max())

    def key(self, sample: int) -> str:
        return self.keys[sample].decode("utf-8", "replace")

    def members(self, sample: int) -> dict[str, tuple[int, int]]:
        """Extension -> (offset, size). Of two members with one extension the first counts."""
        found: dict[str, tuple[int, int]] = {}
        for m in range(self.first[sample], self.first[sample + 1]):
            found.setdefault(self.extensions[self.extension[m]], (int(self.offset[m]), int(self.size[m])))
        return found

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(
            buffer,
            version=np.array(VERSION),
            stamp=np.array(self.stamp),
            keys=self.keys,
            first=self.first,
            offset=self.offset,
            size=self.size,
            extension=self.extension,
            extensions=np.array(self.extensions, dtype=str),
        )
        return buffer.getvalue()

    @staticmethod
    def from_file(path: Path, stamp: str) -> ShardIndex | None:
        """The index in a file; None where there is none, or it is of another state of the shard."""
        try:
            with np.load(path, allow_pickle=False) as data:
                if int(data["version"]) != VERSION or str(data["stamp"]) != stamp:
                    return None
                extensions = [str(e) for e in data["extensions"]]
                return ShardIndex(
                    data["keys"],
                    data["first"],
                    data["offset"],
                    data["size"],
                    data["extension"],
                    extensions,
                    str(data["stamp"]),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def build(storage: Storage, location: str) -> ShardIndex:
    """Walk through a tar's headers (a remote one is read by blocks, once).

    Raises:
        DataError: missing, unreachable, not a tar, cut short, or without samples.
    """
    total, stamp = storage.stamp(location)
    samples: list[tuple[str, list[tuple[str, int, int]]]] = []
    try:
        with storage.open(location, total) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if not member.isfile() or name.startswith(".") or "." not in name:
                    continue
                stem, extension = name.split(".", 1)
                key = f"{folder}/{stem}".lstrip("/")
                if not samples or samples[-1][0] != key:
                    samples.append((key, []))
                samples[-1][1].append((extension.lower(), member.offset_data, member.size))
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        if isinstance(error, tarfile.ReadError) and "empty file" in str(error):
            raise _empty(location) from error
        raise DataError(
            f"{location} is cut short or is no tar: {error}",
            f"a shard is a whole, uncompressed tar (good up to sample {len(samples)})",
            "copy or make the shard again, or leave it out",
        ) from error
    # tarfile takes a tar that was cut between two members for a whole one: the closing blocks of zeros are missing then
    if 0 < total < end + 512:
        raise DataError(
            f"{location} is cut short: {total} bytes, {len(samples)} samples and no closing blocks",
            "a shard is a whole tar",
            "copy or make the shard again, or leave it out",
        )
    if not samples:
        raise _empty(location)
    return _pack(samples, stamp)


def path_of(location: str, stamp: str, index_dir: Path | None) -> Path:
    """Where the index of a shard lies, or will."""
    if not is_remote(location):
        beside = Path(f"{location}.index.npz")
        if beside.exists() or os.access(beside.parent, os.W_OK):
            return beside
    return index_folder(index_dir) / f"{hashlib.sha256(f'{location}|{stamp}'.encode()).hexdigest()[:32]}.npz"


def index_folder(index_dir: Path | None) -> Path:
    """Where indexes go that cannot lie beside their shards."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return index_dir or cache / "intern-trainer" / "index"


def find(storage: Storage, location: str, index_dir: Path | None) -> ShardIndex | None:
    """The index of a shard if it was made already and still fits.

    Raises:
        DataError: the shard is missing or unreachable.
    """
    _, stamp = storage.stamp(location)
    return ShardIndex.from_file(path_of(location, stamp, index_dir), stamp)


def find_or_build(storage: Storage, location: str, index_dir: Path | None) -> ShardIndex:
    """The index of a shard, made and kept where there is none. Where it cannot be kept it is made each time."""
    found = find(storage, location, index_dir)
    if found is not None:
        return found
    made = build(storage, location)
    with contextlib.suppress(OSError):
        keep(made, location, index_dir)
    return made


def keep(made: ShardIndex, location: str, index_dir: Path | None) -> None:
    """Raises OSError: there is no place for it."""
    write_atomically(path_of(location, made.stamp, index_dir), made.to_bytes())


def _empty(location: str) -> DataError:
    return DataError(
        f"{location} holds no samples",
        "a shard holds members such as 000.jpg and 000.txt",
        "leave it out, or make it again",
    )


def _pack(samples: list[tuple[str, list[tuple[str, int, int]]]], stamp: str) -> ShardIndex:
    members = [member for _, group in samples for member in group]
    extensions = sorted({extension for extension, _, _ in members})
    number = {extension: n for n, extension in enumerate(extensions)}
    return ShardIndex(
        keys=np.array([key.encode() for key, _ in samples], dtype=np.bytes_),
        first=np.cumsum([0] + [len(group) for _, group in samples]).astype(np.int32),
        offset=np.array([offset for _, offset, _ in members], dtype=np.int64),
        size=np.array([size for _, _, size in members], dtype=np.int64),
        extension=np.array([number[extension] for extension, _, _ in members], dtype=np.int16),
        extensions=extensions,
        stamp=stamp,
    )
