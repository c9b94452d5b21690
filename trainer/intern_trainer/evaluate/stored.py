"""Evaluating what a run has saved, on one process or many."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from intern_trainer import checkpoint, evaluate
from intern_trainer.config.schema import Config
from intern_trainer.errors import CheckpointError
from intern_trainer.evaluate.results import results_entry, results_table
from intern_trainer.observe.log import start_logging
from intern_trainer.observe.phases import phase
from intern_trainer.ranks import Ranks, init_ranks
from intern_trainer.run_folder import RunFolder
from intern_trainer.slices import EMA
from intern_trainer.tasks import build_task
from intern_trainer.text import check_tokenizer
from intern_trainer.threads import set_threads

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredModel:
    """In evaluation mode; of which step, and of which weights (`ema` or `raw`)."""

    model: Any
    step: int
    weights: str


def evaluate_run(
    folder: RunFolder,
    config: Config,
    split: Literal["test", "validation"],
    weights: Literal["ema", "raw"] | None,
    path: Path | None,
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run, keep the results in RUN/evaluation.json, show them, and give that entry.

    Args:
        weights: None takes the average where the run keeps one.
        path: the checkpoint; None: the newest good one.

    Raises:
        CheckpointError: no checkpoint, a damaged one, one of another model, or no average where `ema` is asked for.
    """
    set_threads(config)
    ranks = init_ranks()
    start_logging(ranks.rank, ranks.world_size)
    stored = stored_model(folder, config, weights, path, ranks)
    with phase(f"evaluating {split}"):
        benchmark = config.evaluate.test if split == "test" else config.evaluate.validation
        results = evaluate.run(stored.model, benchmark, config, ranks)
    entry = results_entry(split, stored.step, stored.weights, results)
    if ranks.is_main:
        folder.add_evaluation(entry)
    log.info(results_table(entry))
    return entry


def stored_model(
    folder: RunFolder, config: Config, weights: Literal["ema", "raw"] | None, path: Path | None, ranks: Ranks
) -> StoredModel:
    """A checkpoint's model, whole on this rank's device. Collective; arguments and errors as of `evaluate_run`."""
    path = path or checkpoint.newest_good(folder.path, ranks)
    if path is None:
        raise CheckpointError(f"{folder.path} holds no checkpoint yet", "evaluation needs a saved model", "train first")
    with phase(f"reading {path}"):
        reader = checkpoint.CheckpointReader(path)
        which = weights or ("ema" if reader.names(EMA) else "raw")
        if which == "ema" and not reader.names(EMA):
            raise CheckpointError(f"{path} holds no moving average", "it is kept with train.ema_decay", "--weights raw")
        check_tokenizer(config.model.text, reader.progress.tokenizer, path)
        model = build_task(config, ranks).build_model().to(ranks.device)
        _take(model, dict(reader.weights(which)), path)
    return StoredModel(model.eval(), reader.progress.step, which)


def _take(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    state = model.state_dict()
    names = state.keys() | weights.keys()
    wrong = [n for n in names if n not in state or n not in weights or state[n].shape != weights[n].shape]
    if wrong:
        raise CheckpointError(
            f"{path} is of another model: {len(wrong)} tensors do not fit, such as {min(wrong)}",
            "a checkpoint is evaluated with the model that it was saved from",
            f"leave the model section as in {path}/config.json",
        )
    model.load_state_dict(weights)
