"""`intern-trainer export RUN --to DIR`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from intern_zoo.errors import StateDictError
from intern_zoo.hf.export import Exportable, write_folder
from torch import Tensor

from intern_trainer.checkpoint import CheckpointReader, newest_good
from intern_trainer.config.schema import Config
from intern_trainer.errors import CheckpointError, ConfigError, EnvironmentFault
from intern_trainer.export.card import model_card
from intern_trainer.export.check import COMPARE, Differences, compare_weights, fits_in_memory, load_weights
from intern_trainer.export.kinds import KINDS
from intern_trainer.observe.phases import phase
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder
from intern_trainer.slices import EMA
from intern_trainer.tasks import Task, build_task
from intern_trainer.text import check_tokenizer, with_tokenizer

log = logging.getLogger(__name__)

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
MAX_SHARD_BYTES = 5 * 10**9
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
"""What a place says that cannot take the folder."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the trainer's model.

    Attributes:
        weights: `ema` or `raw`. parameters: their number. weight_bytes: size of all tensors in bytes.
        differences: largest differences found after loading the folder in a process of its own.
    """

    folder: Path
    checkpoint: Path
    weights: str
    parameters: int
    weight_bytes: int
    requires: tuple[str, ...]
    differences: Differences

    def __str__(self) -> str:
        found = self.differences
        lines = [
            f"exported {self.checkpoint} ({self.weights} weights, {self.parameters / 1e6:,.1f} M parameters, "
            f"{self.weight_bytes / 1e6:,.1f} MB) to {self.folder}"
        ]
        if found.features is None:
            lines.append(
                "reloaded: every stored number equals the checkpoint's "
                "(outputs not compared: the model is larger than this machine's free memory)"
            )
        else:
            lines.append(
                f"reloaded: largest difference to the trainer's model {found.features:.1e} (features), "
                f"{found.logits:.1e} (logits); from the picture files on {found.pixels:.1e} (pixel values), "
                f"{found.scores:.1e} (probabilities)"
            )
        packages = " ".join(("torch", "transformers", "pillow", *self.requires))
        lines.append(f"try: pip install {packages}, then as {self.folder / 'README.md'} shows")
        return "\n".join(lines)


def export_run(
    run: Path,
    to: Path,
    weights: Literal["ema", "raw"] | None = None,
    checkpoint: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ExportReport:
    """Write a checkpoint of a run as a folder for transformers. Needs no GPU; holds one tensor at a time while it
    writes.

    Args:
        run: folder of the run.
        to: folder to write; must not exist, or be empty. It appears whole or not at all.
        weights: None takes the average where the run keeps one.
        checkpoint: None takes the newest good one.
        max_shard_bytes: size of a weights file at most, unless one tensor alone is larger.

    Raises:
        ConfigError: no run there, or something in `to`. CheckpointError: no checkpoint, a damaged one, no average in
        it, or one of another model. EnvironmentFault: the disk is full. ExportError: the folder does not load or
        compute the same.
    """
    folder = RunFolder.existing(run)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(
            f"{to} is there already", "an export never overwrites anything", "give another --to, or remove it"
        )
    reader, which = _open(run, checkpoint, weights)
    config = with_tokenizer(reader.config, folder.tokenizer)
    check_tokenizer(config.model.text, reader.progress.tokenizer, reader.path)
    task = build_task(config, ALONE)
    with torch.device("meta"):
        model = task.build_model()
    exportable = KINDS[config.task](model, config)
    parameters = sum(p.numel() for name, p in model.named_parameters() if name in exportable.expected)
    card = _card(folder, config, to, exportable, parameters, reader, which)
    found: list[Differences] = []
    try:
        with phase(f"exporting {reader.path} to {to}"):
            size = write_folder(
                to.resolve(),  # it is loaded in a process with another current folder
                exportable,
                _exported(exportable, reader, which),
                card,
                max_shard_bytes,
                check=lambda written: found.append(_check(written, exportable, task, config, reader, which)),
            )
    except StateDictError as error:
        raise CheckpointError(f"{reader.path}: {error.found}", error.rule, error.fix) from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise EnvironmentFault(
            f"cannot write {to}: {error.strerror}", "nothing was left behind", "free space, or give another --to"
        ) from error
    return ExportReport(to, reader.path, which, parameters, size, exportable.requires, found[0])


def _open(
    run: Path, checkpoint: Path | None, weights: Literal["ema", "raw"] | None
) -> tuple[CheckpointReader, Literal["ema", "raw"]]:
    path = checkpoint or newest_good(run)
    if path is None:
        raise CheckpointError(f"{run} holds no checkpoint yet", "an export needs a saved model", "train first")
    reader = CheckpointReader(path)
    averaged = bool(reader.names(EMA))
    if weights == "ema" and not averaged:
        raise CheckpointError(f"{path} holds no moving average", "it is kept with train.ema_decay", "--weights raw")
    return reader, weights or ("ema" if averaged else "raw")


def _exported(
    exportable: Exportable, reader: CheckpointReader, which: Literal["ema", "raw"]
) -> Iterator[tuple[str, Tensor]]:
    """Without what served a loss alone."""
    return ((name, tensor) for name, tensor in reader.weights(which) if name in exportable.expected)


def _check(
    written: Path,
    exportable: Exportable,
    task: Task,
    config: Config,
    reader: CheckpointReader,
    which: Literal["ema", "raw"],
) -> Differences:
    size = sum(file.stat().st_size for file in written.glob("*.safetensors"))
    if not fits_in_memory(size):
        return compare_weights(written, _exported(exportable, reader, which))

    def build() -> Any:
        model = task.build_model()
        load_weights(model, reader.weights(which))
        return model

    return COMPARE[config.task](written, build, config)


def _card(
    folder: RunFolder,
    config: Config,
    to: Path,
    exportable: Exportable,
    parameters: int,
    reader: CheckpointReader,
    which: str,
) -> str:
    progress = reader.progress
    origin: dict[str, Any] = {
        "optimizer steps": progress.step,
        "samples seen": progress.samples,
        "weights": "moving average" if which == "ema" else "as trained",
        "checkpoint": reader.path.name,
    }
    starts = folder.read(folder.run, {}).get("starts", [])
    if starts:  # each start adds itself; the last one wrote the newest checkpoints
        git = starts[-1].get("git") or {}
        commit = f"{git.get('commit', 'unknown')}{' with changes' if git.get('dirty') else ''}"
        origin |= {
            "command": f"`{starts[-1]['command']}`",
            "ranks": starts[-1]["world_size"],
            "trainer's commit": commit,
        }
    origin["versions"] = ", ".join(f"{name} {version}" for name, version in progress.versions.items())
    entries = [
        entry
        for entry in folder.read(folder.evaluation, [])
        if entry["step"] == progress.step and entry["weights"] == which
    ]
    return model_card(config, to.name, exportable.pipeline, exportable.requires, parameters, origin, entries)
