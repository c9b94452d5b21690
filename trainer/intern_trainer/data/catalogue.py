"""What a run knows of a source before it reads any: its shards, how many samples and bytes each holds.

A source of many shards keeps that in one file, its catalogue, which `intern-trainer data index` makes: a million shards
are known by one read of a few MB instead of a million. It lies beside the shards where that can be written, else in
`data.index_dir` (without one: the user's cache folder), under a name made of the locations. Shards that changed since
are found out when they are opened.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from intern_trainer.data.index import index_folder
from intern_trainer.data.storage import is_remote, write_atomically
from intern_trainer.errors import DataError

VERSION = 1


@dataclass(frozen=True)
class ShardNames:
    """A list of names in little memory: what all of them begin and end with is kept once. `middles`: bytes [n]."""

    head: bytes
    middles: np.ndarray
    tail: bytes

    @staticmethod
    def of(names: Iterable[str]) -> ShardNames:
        coded = [name.encode() for name in names]
        head = _shared(coded)
        backwards = [name[: len(head) - 1 : -1] if head else name[::-1] for name in coded]
        tail = _shared(backwards)
        middles = [rest[: len(tail) - 1 : -1] if tail else rest[::-1] for rest in backwards]
        return ShardNames(head, np.array(middles, dtype=np.bytes_), tail[::-1])

    def __len__(self) -> int:
        return len(self.middles)

    def __getitem__(self, number: int) -> str:
        return (self.head + bytes(self.middles[number]) + self.tail).decode()

    def __iter__(self) -> Iterator[str]:
        return ((self.head + middle + self.tail).decode() for middle in self.middles.tolist())


@dataclass(frozen=True)
class Catalogue:
    """One source.

    Attributes:
        counts [n]: samples of each shard. sizes [n]: bytes of each, up to the end of its last member.
    """

    name: str
    weight: float
    shards: ShardNames
    counts: np.ndarray
    sizes: np.ndarray

    @cached_property
    def total(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def is_remote(self) -> bool:
        return is_remote(self.shards[0])

    def stem(self, shard: int) -> str:
        return _stem(self.shards[shard])

    @cached_property
    def digest(self) -> str:
        """Of the shards' names, in their order, samples and bytes; not of the folder that they lie in."""
        digest = hashlib.sha256()
        for name, count, size in zip(self.shards, self.counts.tolist(), self.sizes.tolist(), strict=True):
            digest.update(f"{_stem(name)}:{count}:{size}\n".encode())
        return digest.hexdigest()[:32]

    def fingerprint(self) -> dict[str, Any]:
        """What the order of samples depends on."""
        return {
            "name": self.name,
            "weight": self.weight,
            "shards": len(self.shards),
            "samples": self.total,
            "digest": self.digest,
        }


def keep(
    patterns: Iterable[str], index_dir: Path | None, shards: Iterable[str], counts: Sequence[int], sizes: Sequence[int]
) -> Path:
    """Write the catalogue of the source that `patterns` (`sources.patterns` of its locations) name; gives its path."""
    names, buffer = ShardNames.of(shards), io.BytesIO()
    np.savez_compressed(
        buffer,
        version=np.array(VERSION),
        head=np.array(names.head, dtype=np.bytes_),
        middles=names.middles,
        tail=np.array(names.tail, dtype=np.bytes_),
        counts=np.array(counts, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
    )
    beside, elsewhere = _paths(patterns, index_dir)
    path = beside if beside is not None and os.access(beside.parent, os.W_OK) else elsewhere
    write_atomically(path, buffer.getvalue())
    return path


def find(
    patterns: Iterable[str], index_dir: Path | None, name: str, weight: float
) -> tuple[Catalogue, Path, float] | None:
    """The source as its catalogue has it, the file, and its age in days; None where there is no file.

    Raises:
        DataError: the file cannot be read.
    """
    for path in _paths(patterns, index_dir):
        if path is None or not path.is_file():
            continue
        try:
            with np.load(path, allow_pickle=False) as data:
                if int(data["version"]) != VERSION:
                    raise ValueError(f"version {data['version']}")
                names = ShardNames(data["head"].item(), data["middles"], data["tail"].item())
                found = Catalogue(name, weight, names, data["counts"], data["sizes"])
            return found, path, (time.time() - path.stat().st_mtime) / 86400
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} cannot be read: {error}", "a catalogue is a whole file", "intern-trainer data index makes it"
            ) from error
    return None


def _paths(patterns: Iterable[str], index_dir: Path | None) -> tuple[Path | None, Path]:
    """Where the catalogue may be: beside the shards (local ones), and in the folder for indexes."""
    digest, first = hashlib.sha256(), ""
    for pattern in patterns:
        first = first or pattern
        digest.update(f"{pattern}\n".encode())
    name = f"catalogue-{digest.hexdigest()[:16]}.npz"
    local = not is_remote(first) and not any(c in str(PurePosixPath(first).parent) for c in "*?[")
    return Path(first).parent / name if local else None, index_folder(index_dir) / name


def _shared(names: list[bytes]) -> bytes:
    """What all names begin with: the smallest and the largest differ first."""
    low, high = min(names), max(names)
    return low[: next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".tar")
