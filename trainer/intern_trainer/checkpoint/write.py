"""Saving: beside, fsynced, checksummed, renamed. Whenever a process dies, the older checkpoints are what they were.

`save` does it at once, straight from the live state; `background.py` does the same parts one after another beside
training.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

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
from intern_trainer.slices import Slice

log = logging.getLogger(__name__)
T = TypeVar("T")


@place("save")
def save(engine: HasState, progress: Progress, run_dir: Path, ranks: Ranks, cfg: Config) -> Path:
    """Write checkpoint `RUN/checkpoints/step-<progress.step>` on all ranks and give its path. Collective.

    A checkpoint of the same step is replaced, once the new one is complete.

    Raises (the same on every rank, with the unfinished folder removed and all older checkpoints as they were):
        TrainingError: the last loss or gradient norm, or a value of the state, is not finite.
        EnvironmentFault: the disk is full.
        CheckpointError: the folder cannot be written, or the ranks' slices do not make up the whole state.
    """
    began = time.monotonic()
    draft = Draft(engine, progress, run_dir, ranks, cfg)
    written = draft.agreed(lambda: draft.write(engine.slices()))
    draft.agreed(lambda: draft.finish(written))
    remember_verified(draft.final)
    if ranks.is_main:
        seconds = time.monotonic() - began
        log.info("saved %s: %s in %.1f s, for which training waited", draft.final, in_bytes(draft.needed), seconds)
    return draft.final


def state_bytes(engine: HasState) -> int:
    """Bytes of what this rank would save."""
    return sum(piece.tensor.nbytes for piece in engine.slices())


def in_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:.3g} TB"


class Draft:
    """A checkpoint on its way: begun when this is made, then each rank's `write`, then `finish`.

    What it says of the run is of the moment in which it is made: position, results, random number generators, and what
    of the engine is no tensor. Making it is collective; `write` and `finish` hold no collective, so a thread may call
    them. Each goes through `agreed`, whose errors are those of `save`.

    Attributes:
        progress: as it was. final, folder: where it will be, and where it is written. needed: bytes of the state, all
            ranks together.
    """

    def __init__(self, engine: HasState, progress: Progress, run_dir: Path, ranks: Ranks, cfg: Config) -> None:
        self.final = layout.step_dir(run_dir, progress.step)
        self.folder = layout.sibling(self.final, "tmp")
        self.needed = 0
        fixed = progress.data_fingerprint  # of a million shards, perhaps; nobody changes it
        self.progress = deepcopy(progress, {id(fixed): fixed})
        self._ranks, self._cfg = ranks, cfg
        self._rng, self._scalars = rng_state(ranks.device), deepcopy(engine.scalars())
        self.needed = sum(self.agreed(lambda: state_bytes(engine)))
        self.agreed(self._begin)

    def agreed(self, action: Callable[[], T]) -> list[T]:
        """`agreed` by all ranks; where it fails, nothing of this checkpoint stays. Collective."""
        try:
            return agreed(self._ranks, action, lambda error: in_words(error, self.folder, self.needed))
        except UserError:
            if self._ranks.is_main:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def write(self, slices: Iterable[Slice]) -> Files:
        """This rank's shard files and its index; what the manifest says about them."""
        if not self.folder.is_dir():
            raise CheckpointError(
                f"rank {self._ranks.rank} does not see {self.folder}, which rank 0 made",
                "all ranks write into one folder",
                "put run.dir on a file system that all nodes share",
            )
        name = layout.part_name(self._ranks.rank)
        index, files = write_slices(slices, self.folder, self._ranks.rank)
        files[name] = layout.write_json(self.folder / name, {"rng": self._rng, "tensors": index})
        return files

    def finish(self, written: list[Files]) -> None:
        """Rank 0, when all ranks have written: the files about the whole, the manifest last, and the rename."""
        if not self._ranks.is_main:
            return
        folder, final, progress, world_size = self.folder, self.final, self.progress, len(written)
        files = {name: facts for part in written for name, facts in part.items()}
        tensors = merge_indexes(
            json.loads((folder / layout.part_name(rank)).read_bytes())["tensors"] for rank in range(world_size)
        )
        record = {**progress.to_json(), "versions": versions(), "world_size": world_size, "scalars": self._scalars}
        files[layout.TENSORS] = layout.write_json(folder / layout.TENSORS, tensors)
        files[layout.PROGRESS] = layout.write_json(folder / layout.PROGRESS, record)
        settings = self._cfg.model_dump(mode="json", by_alias=True)
        files[layout.CONFIG] = layout.write_json(folder / layout.CONFIG, settings)
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

    def _begin(self) -> None:
        """Rank 0: refuse what must not be saved, clear what an earlier attempt left, see that there is room."""
        if not self._ranks.is_main:
            return
        progress = self.progress
        if not progress.is_finite:
            raise TrainingError(
                f"step {progress.step} has loss {progress.loss} and gradient norm {progress.grad_norm}, so it is not "
                "saved",
                "a checkpoint holds finite numbers only; the older checkpoints stay as they are",
                layout.DIVERGED,
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if shutil.disk_usage(self.folder).free < self.needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))


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
