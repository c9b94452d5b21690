"""Is a checkpoint whole? And which is the newest that is?"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from intern_trainer.checkpoint import layout
from intern_trainer.checkpoint.agree import agreed
from intern_trainer.errors import CheckpointError
from intern_trainer.ranks import Ranks

log = logging.getLogger(__name__)

_verified: set[tuple[Path, str]] = set()
"""Checkpoints that this process found whole, by place and content, so that they are not read twice."""


def remember_verified(path: Path) -> None:
    _verified.add((path.resolve(), layout.read_manifest(path)["checksum"]))


def is_verified(path: Path, manifest: dict[str, Any]) -> bool:
    return (path.resolve(), manifest["checksum"]) in _verified


def check_sizes(path: Path) -> dict[str, Any]:
    """The manifest of `path`, once every file that it lists is there with its size.

    Raises:
        CheckpointError: naming the file and what to do.
    """
    manifest = layout.read_manifest(path)
    for name, facts in manifest["files"].items():
        file = layout.inside(path, name)
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing, one of {len(manifest['files'])} files of the checkpoint", fix=layout.OLDER
            )
        if file.stat().st_size != facts["size"]:
            raise CheckpointError(
                f"{file} has {file.stat().st_size:,} bytes, written were {facts['size']:,}", fix=layout.OLDER
            )
    return manifest


def check_file(path: Path, name: str, manifest: dict[str, Any]) -> None:
    """Compare the checksum of one file of checkpoint `path`. Raises CheckpointError."""
    file = layout.inside(path, name)
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(error) from error
    if found != manifest["files"][name]["sha256"]:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is {found[:16]}…, written was {manifest['files'][name]['sha256'][:16]}…",
            fix=layout.OLDER,
        )


def verify(path: Path, share: tuple[int, int] = (0, 1)) -> None:
    """Check the sizes of all files of `path`, and the checksums of every n-th file from the i-th on for `share` (i, n).

    Raises:
        CheckpointError: naming the first file that is not as it was written.
    """
    manifest = check_sizes(path)
    if is_verified(path, manifest):
        return
    names = sorted(manifest["files"])[share[0] :: share[1]]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        for future in [pool.submit(check_file, path, name, manifest) for name in names]:
            future.result()


def newest_good(run_dir: Path, ranks: Ranks | None = None, at_most: int | None = None) -> Path | None:
    """The newest checkpoint of a run that is whole, or None where the run has none yet.

    Every byte is read and compared; a damaged checkpoint is named in a warning and passed over.

    Args:
        ranks: they share the reading (collective). None: this process reads alone.
        at_most: only those of this step or an earlier one.

    Raises:
        CheckpointError: there are checkpoints and none is whole. Starting over in silence would bury them.
    """
    candidates = layout.step_dirs(run_dir) if ranks is None else ranks.broadcast(layout.step_dirs(run_dir))
    candidates = [path for path in candidates if at_most is None or layout.step_of(path) <= at_most]
    for path in reversed(candidates):
        try:
            _verify_together(path, ranks)
        except CheckpointError as error:
            if ranks is None or ranks.is_main:
                log.warning("passed over checkpoint %s: %s", path, error.found)
            continue
        remember_verified(path)
        return path
    if candidates:
        raise CheckpointError(
            f"{len(candidates)} checkpoint(s) in {layout.checkpoints_dir(run_dir)}, none of them whole "
            f"(newest: {candidates[-1].name})",
            "a run goes on from its newest whole checkpoint, and does not start over where some exist",
            f"move {layout.checkpoints_dir(run_dir)} away to start from the beginning, or give another run.dir",
        )
    return None


def _verify_together(path: Path, ranks: Ranks | None) -> None:
    if ranks is None:
        verify(path)
    else:
        share = (ranks.rank, ranks.world_size)
        agreed(ranks, lambda: verify(path, share), _unreadable)


def _unreadable(error: OSError) -> CheckpointError:
    return CheckpointError(f"{error.filename} cannot be read: {error.strerror}", fix=layout.OLDER)


def tidy(run_dir: Path, ranks: Ranks) -> None:
    """Clear what a start that was killed left: a save or a deletion half done, a replacement between its two renames.

    Collective, and for the one run that writes into the folder: before it looks for its newest checkpoint.
    """
    folder = layout.checkpoints_dir(run_dir)

    def clear() -> None:
        for aside in folder.glob(".old-step-*"):
            final = aside.with_name(aside.name.removeprefix(".old-"))
            if not final.exists():
                os.rename(aside, final)
        for left in (path for purpose in ("tmp", "old", "gone") for path in folder.glob(f".{purpose}-step-*")):
            shutil.rmtree(left, ignore_errors=True)

    ranks.on_main(clear)
