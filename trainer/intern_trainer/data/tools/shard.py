"""`intern-trainer data shard`: WebDataset shards from pictures and captions.

Which picture goes into which shard is decided before any is read, so that shards are made in parallel, and those that
an earlier, interrupted command finished are taken as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from intern_trainer.data.order import permutation
from intern_trainer.data.storage import Storage, is_remote, write_atomically
from intern_trainer.data.tools.index import index_command
from intern_trainer.data.tools.listing import Entry, list_source
from intern_trainer.data.tools.pack import Job, Packed, pack
from intern_trainer.data.tools.pool import each
from intern_trainer.errors import DataError

NAMED = 20
"""Skipped pictures that are printed; all are in the X.packed.json beside their shard."""
TRIED = 50
"""If none of the first pictures exists, the paths are meant otherwise."""
MANIFEST = "shards.json"


@dataclass(frozen=True)
class Options:
    """What to make, from the command line (`cli_data.py` explains each)."""

    source: str
    to: Path
    samples_per_shard: int = 10_000
    max_bytes: int | None = None
    shuffle: int | None = None
    root: str | None = None
    path_column: str = "path"
    caption_column: tuple[str, ...] = ("caption",)
    template: str = "{}"
    resize: int | None = None
    quality: int = 90

    @staticmethod
    def of(chosen: argparse.Namespace) -> Options:
        given = {name: getattr(chosen, name) for name in Options.__dataclass_fields__}
        return replace(Options(**given), caption_column=tuple(chosen.caption_column or ("caption",)))


def shard(options: Options, workers: int) -> int:
    """Make the shards; name what was left out. Gives the exit code.

    Raises:
        DataError: the source cannot be used, `to` holds other shards, or not one picture was usable.
    """
    errors = Console(stderr=True)
    listing = list_source(
        options.source, options.root, options.path_column, list(options.caption_column), options.template
    )
    entries = listing.entries
    _look_for_some(entries, options)
    _claim(options, entries)
    if options.shuffle is not None:
        entries = [entries[n] for n in permutation(len(entries), options.shuffle).tolist()]
    jobs = _jobs(entries, options)
    total = Packed(0, 0, 0, [])
    for done in each(pack, jobs, workers, "shards"):
        total = Packed(
            total.samples + done.samples,
            total.several + done.several,
            total.bytes + done.bytes,
            total.skipped + done.skipped,
        )
    for one in total.skipped[:NAMED]:
        errors.print(f"left out {one.name}: {one.reason}", markup=False, soft_wrap=True)
    if len(total.skipped) > NAMED:
        errors.print(
            f"... and {len(total.skipped) - NAMED:,} more, named in {options.to}/*.packed.json", soft_wrap=True
        )
    if not total.samples:
        raise DataError(
            f"none of {len(entries):,} pictures of {options.source} can be used; {total.skipped[0].reason}",
            "a sample is a picture with a caption",
            "correct the source or the options, and remove " + str(options.to),
        )
    _report(options, jobs, total, listing.passed_over)
    return index_command([_location(jobs)], None, workers)


def _report(options: Options, jobs: list[Job], total: Packed, passed_over: Counter[str]) -> None:
    print(f"{total.samples:,} samples, {decimal(total.bytes)}, in {options.to}")
    if total.skipped:
        kinds = Counter(one.kind for one in total.skipped)
        print(
            f"{len(total.skipped):,} left out: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        )
    if passed_over:
        print("passed over: " + ", ".join(f"{count:,} {ending}" for ending, count in passed_over.most_common()))
    print(f"to train on them: 'data.train={_location(jobs)}'")
    if total.several:
        several = "data.caption_keys=json.captions data.caption_choice=random"
        print(f"{total.several:,} have several captions; to train on all of them: {several}")


def _look_for_some(entries: list[Entry], options: Options) -> None:
    tried = [entry.path for entry in entries[:TRIED]]
    if not tried:
        raise DataError(f"{options.source} names no pictures", "shards are made of pictures", "correct SOURCE")
    if not any(is_remote(path) or os.path.exists(path) for path in tried):
        raise DataError(
            f"none of the first {len(tried)} pictures exists, such as {tried[0]}",
            "paths are taken from --root, or else from the folder of the table",
            "--root DIR, or correct the paths",
        )


def _claim(options: Options, entries: list[Entry]) -> None:
    """Write down what `to` is made of; refuse a folder that something else was put into."""
    digest = hashlib.sha256()
    for entry in entries:
        place = entry.path if is_remote(entry.path) else os.path.abspath(entry.path)
        digest.update(json.dumps([place, entry.record, len(entry.beside)]).encode() + b"\n")
    plan: dict[str, Any] = {
        "samples_per_shard": None if options.max_bytes else options.samples_per_shard,
        "max_bytes": options.max_bytes,
        "shuffle": options.shuffle,
        "resize": options.resize,
        "quality": options.quality if options.resize else None,
        "list of pictures": digest.hexdigest()[:32],
    }
    manifest = options.to / MANIFEST
    try:
        options.to.mkdir(parents=True, exist_ok=True)
        if manifest.is_file():
            before = json.loads(manifest.read_bytes())
            changed = [
                f"{name} {before.get(name)} -> {value}" for name, value in plan.items() if before.get(name) != value
            ]
            if changed:
                raise DataError(
                    f"{options.to} holds shards that were made otherwise: {', '.join(changed)}",
                    "the same command goes on where it was interrupted, another one starts in a folder of its own",
                    "another --to, or remove that folder",
                )
        elif any(options.to.glob("*.tar")):
            fix = "another --to, or remove those shards"
            raise DataError(f"{options.to} holds other shards", "a set of shards has a folder of its own", fix)
        else:
            write_atomically(manifest, json.dumps(plan, indent=1).encode())
    except (OSError, ValueError) as error:
        raise DataError(f"{options.to} cannot be used: {error}", "", "another --to") from error


def _jobs(entries: list[Entry], options: Options) -> list[Job]:
    pieces = list(_pieces(entries, options))
    digits = max(5, len(str(len(pieces) - 1)))
    jobs = []
    for number, piece in enumerate(pieces):
        path, own = options.to / f"{number:0{digits}d}.tar", entries[piece.start : piece.stop]
        jobs.append(Job(path, piece.start, own, options.resize, options.quality))
    return jobs


def _pieces(entries: list[Entry], options: Options) -> Iterator[range]:
    """Which entries each shard gets."""
    if options.max_bytes is None:
        for first in range(0, len(entries), options.samples_per_shard):
            yield range(first, min(first + options.samples_per_shard, len(entries)))
        return
    storage, first, size = Storage(), 0, 0
    with ThreadPoolExecutor(16) as pool:
        sizes = pool.map(lambda entry: _size(storage, entry.path), entries)
        for number, bytes in enumerate(sizes):
            if number > first and size + bytes > options.max_bytes:
                yield range(first, number)
                first, size = number, 0
            size += bytes
    yield range(first, len(entries))


def _size(storage: Storage, path: str) -> int:
    try:
        return max(0, storage.stamp(path)[0])
    except DataError:  # named when it is packed
        return 0


def _location(jobs: list[Job]) -> str:
    """How `data.train` names the shards; a brace range unless one of them turned out empty."""
    first, last = jobs[0].path, jobs[-1].path
    if len(jobs) == 1:
        return str(first)
    whole = all(job.path.is_file() for job in jobs)
    return f"{first.parent}/{{{first.stem}..{last.stem}}}.tar" if whole else f"{first.parent}/*.tar"
