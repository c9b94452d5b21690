"""Resuming: every piece of state back to where this run's layout needs it, or an error that says what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from intern_trainer.checkpoint.progress import Progress, derive_rng_state, set_rng_state
from intern_trainer.checkpoint.protocol import HasState
from intern_trainer.checkpoint.read import CheckpointReader
from intern_trainer.errors import CheckpointError
from intern_trainer.ranks import Ranks
from intern_trainer.slices import BUFFER, FROZEN, PARAM

log = logging.getLogger(__name__)

Tensors = tuple[str, str]
"""Kind and name."""
SHOWN = 3
"""Names shown of a list of differences."""


def load(engine: HasState, path: Path, ranks: Ranks) -> Progress:
    """Put checkpoint `path` into `engine`, whatever ZeRO stage and number of ranks wrote it. Collective.

    The random number generators go on where they stopped; with another number of ranks than the writer's they are
    seeded from seed, step and rank.

    Raises (the same on every rank):
        CheckpointError: damaged, or of another model or optimizer.
    """
    ranks.on_main(lambda: CheckpointReader(path).close())  # what is wrong with it, once for all
    reader = CheckpointReader(path, ranks.rank)
    compare(engine.shapes(), reader)
    try:
        engine.load(reader.read, reader.scalars)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.found}", error.rule, error.fix) from error
    if reader.world_size == ranks.world_size:
        set_rng_state(reader.rng(ranks.rank), ranks.device)
    else:
        derive_rng_state(reader.config.train.seed, reader.progress.step, ranks.rank)
    reader.close()
    return reader.progress


def compare(shapes: Mapping[Tensors, tuple[int, ...]], reader: CheckpointReader) -> None:
    """See that the checkpoint holds exactly the parameters and buffers of the model.

    Raises:
        CheckpointError: naming what is missing, too much, or of another shape.
    """
    saved = {(kind, name): reader.shape(kind, name) for kind in (PARAM, FROZEN, BUFFER) for name in reader.names(kind)}
    lost, left = ({name for _, name in entries} for entries in (shapes.keys() - saved, saved.keys() - shapes))
    config = f"{reader.path}/config.json"
    if lost & left:  # the same name, once trained and once frozen
        raise CheckpointError(
            f"{reader.path}: {_listed('parameter', lost & left)} of this run changed between trained and frozen",
            "a run goes on with the parameters that it began to train",
            f"set model.freeze as in {config}, or begin a new run.dir with init.from={reader.path}",
        )
    others = [
        f"{name} (saved {list(saved[kind, name])}, now {list(shapes[kind, name])})"
        for kind, name in saved.keys() & shapes
        if saved[kind, name] != shapes[kind, name]
    ]
    found = [
        f"{_listed('tensor', names)} {what}"
        for names, what in ((lost, "missing in it"), (left, "not in this model"), (others, "of another shape"))
        if names
    ]
    if found:
        raise CheckpointError(
            f"{reader.path} is of another model: {'; '.join(found)}",
            "a run goes on with the model it began with",
            f"set the model section as in {config}, or choose another run.dir",
        )


def _listed(noun: str, names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''} ({', '.join(names[:SHOWN])}{more})"


def check_data(progress: Progress, fingerprint: dict[str, Any], new_order: bool = False) -> None:
    """See that the order of samples is the one that the run began with, so that no sample is seen twice or left out.

    Args:
        fingerprint: `TrainData.fingerprint` of this start.
        new_order: the user's `--new-order`: take the new order from here on, and say so.

    Raises:
        CheckpointError: naming what changed, with the values.
    """
    before, now = _flat(progress.data_fingerprint), _flat(fingerprint)
    changed = [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if not changed:
        return
    text = "; ".join(changed[:SHOWN]) + (f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")
    if new_order:
        log.warning("the order of samples is a new one from step %d on (--new-order): %s", progress.step, text)
        return
    raise CheckpointError(
        f"the data changed since step {progress.step}: {text}",
        "a run goes on at its place in one fixed order of samples, which these settings decide",
        "set them as they were, or add --new-order to go on with the new order: samples already seen may then come "
        "again before others have come once",
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {prefix: value}
    return {
        key: leaf for name, item in items for key, leaf in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }
