"""Where a run starts from: its own newest checkpoint, other weights, or nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from intern_trainer import checkpoint
from intern_trainer.callbacks.sinks import truncate_records
from intern_trainer.checkpoint import CheckpointReader, Progress
from intern_trainer.config.phases import Phases
from intern_trainer.config.schema import Config
from intern_trainer.data import TrainData
from intern_trainer.engine import Engine
from intern_trainer.errors import ConfigError
from intern_trainer.init_from import initialise
from intern_trainer.observe.phases import phase
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder
from intern_trainer.state import State
from intern_trainer.text import check_tokenizer

log = logging.getLogger(__name__)


def find_checkpoint(config: Config, folder: RunFolder, ranks: Ranks) -> Path | None:
    """The newest good checkpoint of this run, or None. Collective.

    Raises:
        ConfigError: there is one and `run.resume` forbids to go on.
        CheckpointError: there are some and none is good.
    """
    checkpoint.tidy(folder.path, ranks)
    newest = checkpoint.newest_good(folder.path, ranks)
    if newest is not None and not config.run.resume:
        raise ConfigError(
            f"{newest} exists",
            "run.resume=false starts only in a folder without checkpoints",
            "give another run.dir, or leave run.resume out",
        )
    return newest


def is_finished(config: Config, folder: RunFolder, newest: Path | None, ranks: Ranks) -> bool:
    """Whether all steps are done and evaluated, and the report is written. Collective."""

    def finished() -> bool:
        if newest is None or not folder.report.is_file():
            return False
        step = CheckpointReader(newest).progress.step
        return step >= Phases(config).steps and folder.was_evaluated("test", step)

    return ranks.on_main(finished)


def starting_point(
    config: Config, newest: Path | None, engine: Engine, data: TrainData, ranks: Ranks, new_order: bool
) -> Progress:
    """Fill the engine: from `newest`, else from `init.from`, else leave the fresh weights; and say where the run
    stands. Collective.
    """
    if newest is not None:
        with phase(f"resuming from {newest}"):
            progress = checkpoint.load(engine, newest, ranks)
        check_tokenizer(config.model.text, progress.tokenizer, newest)
        checkpoint.check_data(progress, data.fingerprint, new_order)
        return progress
    if config.init.from_ is not None:
        with phase(f"taking weights from {config.init.from_}"):
            initialise(engine, config, ranks)
    return Progress(step=0)


def roll_back(config: Config, folder: RunFolder, state: State, engine: Engine, ranks: Ranks) -> Progress:
    """Take up the checkpoint that `state.rollback` names, and save it anew with the steps that are left out from now
    on, so that a resume leaves them out, too; later checkpoints go. Collective.
    """
    rollback = state.rollback
    assert rollback is not None
    with phase(f"going back to {rollback.checkpoint}"):
        progress = checkpoint.load(engine, rollback.checkpoint, ranks)
        progress.left_out = rollback.steps
        checkpoint.save(engine, progress, folder.path, ranks, config)
        checkpoint.forget_after(folder.path, progress.step, ranks)
    return progress


def name_decoder(folder: RunFolder, decoder: str, ranks: Ranks) -> None:
    """Say what decodes the pictures, and whether that is something else than before. Collective."""

    def name() -> None:
        before = folder.read(folder.run, {}).get("decoder")
        if before not in (None, decoder):
            log.warning("pictures were decoded by %s before: pixels may now differ by rounding", before)
        log.info("pictures are decoded by %s", decoder)
        folder.update_run(decoder=decoder)

    ranks.on_main(name)


def forget_the_future(folder: RunFolder, step: int, ranks: Ranks) -> list[dict[str, Any]]:
    """Drop records and evaluations after `step`, which the run makes again, so that its curves have no doubles; the
    evaluations that stay.
    """

    def forget() -> list[dict[str, Any]]:
        truncate_records(folder.metrics, step)
        return folder.forget_evaluations_after(step)

    return ranks.on_main(forget)
