"""Saving: beside, fsynced, checksummed, renamed. Whenever a process dies, the older checkpoints are what they were."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intern_trainer.checkpoint import layout
from intern_trainer.checkpoint.agree import agreed
from intern_trainer.checkpoint.progress import Progress, rng_state, versions
from intern_trainer.checkpoint.protocol import HasState
from intern_trainer.checkpoint.shards import Files, merge_indexes, write_slices
from intern_trainer.checkpoint.verify import remember_verified
from intern_trainer.config.schema import Config
from intern_trainer.errors import CheckpointError, EnvironmentFault, TrainingError, UserError
from intern_trainer.observe.places import place
from intern_trainer.ranks import Ranks

log = logging.getLogger(__name__)


@place("save")
def save(engine: HasState, progress: Progress, run_dir: Path, ranks: Ranks, cfg: Config) -> Path:
    """Write checkpoint `RUN/checkpoints/step-<progress.step>` on all ranks and give its path. Collective.

    A checkpoint of the same step is replaced, once the new one is complete.

    Raises (the same on every rank, with the unfinished folder removed and all older checkpoints as they were):
        TrainingError: the last loss or gradient norm, or a value of the state, is not finite.
        EnvironmentFault: the disk is full.
        CheckpointError: the folder cannot be written, or the ranks' slices do not make up the whole state.
    """
    final = layout.step_dir(run_dir, progress.step)
    folder = layout.sibling(final, "tmp")
    began = time.monotonic()
    needed = 0

    def failed(error: OSError) -> UserError:
        return in_words(error, folder, needed)

    def on_main(action: Callable[[], None]) -> None:
        agreed(ranks, lambda: action() if ranks.is_main else None, failed)

    try:
        needed = sum(agreed(ranks, lambda: state_bytes(engine), failed))
        on_main(lambda: _begin(progress, folder, needed))
        written = agreed(ranks, lambda: _write_rank(engine, folder, ranks), failed)
        on_main(lambda: _finish(folder, final, progress, cfg, engine, written))
    except UserError:
        if ranks.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    remember_verified(final)
    seconds = time.monotonic() - began
    if ranks.is_main:
        log.info("saved %s: %s in %.1f s", final, in_bytes(needed), seconds)
    return final


def state_bytes(engine: HasState) -> int:
    """Bytes of what this rank would save."""
    return sum(piece.tensor.nbytes for piece in engine.slices())


def in_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:.3g} TB"


def _begin(progress: Progress, folder: Path, needed: int) -> None:
    """Rank 0: refuse what must not be saved, clear what an earlier attempt left, see that there is room."""
    if not progress.is_finite:
        raise TrainingError(
            f"step {progress.step} has loss {progress.loss} and gradient norm {progress.grad_norm}, so it is not saved",
            "a checkpoint holds finite numbers only; the older checkpoints stay as they are",
            layout.DIVERGED,
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _write_rank(engine: HasState, folder: Path, ranks: Ranks) -> Files:
    """This rank's shard files and its index; what the manifest says about them."""
    if not folder.is_dir():
        raise CheckpointError(
            f"rank {ranks.rank} does not see {folder}, which rank 0 made",
            "all ranks write into one folder",
            "put run.dir on a file system that all nodes share",
        )
    index, files = write_slices(engine.slices(), folder, ranks.rank)
    part = {"rng": rng_state(ranks.device), "tensors": index}
    files[layout.part_name(ranks.rank)] = layout.write_json(folder / layout.part_name(ranks.rank), part)
    return files


def _finish(folder: Path, final: Path, progress: Progress, cfg: Config, engine: HasState, written: list[Files]) -> None:
    """Rank 0, when all ranks have written: the files about the whole, the manifest last, and the rename."""
    world_size = len(written)
    files = {name: facts for part in written for name, facts in part.items()}
    tensors = merge_indexes(
        json.loads((folder / layout.part_name(rank)).read_bytes())["tensors"] for rank in range(world_size)
    )
    record = {**progress.to_json(), "versions": versions(), "world_size": world_size, "scalars": engine.scalars()}
    files[layout.TENSORS] = layout.write_json(folder / layout.TENSORS, tensors)
    files[layout.PROGRESS] = layout.write_json(folder / layout.PROGRESS, record)
    files[layout.CONFIG] = layout.write_json(folder / layout.CONFIG, cfg.model_dump(mode="json", by_alias=True))
    manifest: dict[str, Any] = {"format": layout.FORMAT, "version": layout.VERSION, "step": progress.step}
    manifest |= {"world_size": world_size, "bytes": sum(facts["size"] for facts in files.values()), "files": files}
    manifest["checksum"] = layout.self_checksum(manifest)
    layout.sync_folder(folder)
    layout.write_json(folder / layout.MANIFEST, manifest)
    layout.sync_folder(folder)
    aside = layout.sibling(final, "old")
    if final.exists():
        os.rename(final, aside)
    os.rename(folder, final)
    layout.sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def in_words(error: OSError, folder: Path, needed: int) -> UserError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"{error.filename or folder}: {error.strerror or error}", fix="make run.dir writable, or choose another"
        )
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    quota = " (or the quota is used up)" if error.errno == errno.EDQUOT else ""
    return EnvironmentFault(
        f"the disk is full{quota}: {folder.name.removeprefix('.tmp-')} needs {needed:,} bytes ({in_bytes(needed)}), "
        f"{shutil.disk_usage(existing).free:,} were free in {folder.parent} when it failed",
        "a new checkpoint is complete before an old one is deleted, so there must be room for one more than are kept; "
        "all older ones are intact",
        "free space, lower checkpoint.keep_last or checkpoint.keep_best, or choose another run.dir; then run the same "
        "command again",
    )
