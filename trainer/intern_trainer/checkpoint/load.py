"""Resuming: every piece of state back to where this run's layout needs it, or an error that says what does not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from intern_trainer.checkpoint.progress import Progress, derive_rng_state, set_rng_state
from intern_trainer.checkpoint.protocol import HasState
from intern_trainer.checkpoint.read import CheckpointReader
from intern_trainer.errors import CheckpointError
from intern_trainer.ranks import Ranks
from intern_trainer.slices import BUFFER, EMA, FROZEN, PARAM

log = logging.getLogger(__name__)

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
    compare(engine, reader, ranks)
    engine.load(reader.read, reader.scalars)
    if reader.world_size == ranks.world_size:
        set_rng_state(reader.rng(ranks.rank), ranks.device)
    else:
        derive_rng_state(reader.config.train.seed, reader.progress.step, ranks.rank)
    reader.close()
    return reader.progress


def compare(engine: HasState, reader: CheckpointReader, ranks: Ranks) -> None:
    """See that the checkpoint holds exactly the tensors that the engine has. Collective.

    Raises:
        CheckpointError: naming what is missing, too much, or of another shape.
    """
    saved = [(kind, name) for kind in reader.kinds for name in reader.names(kind)]
    place = {entry: i for i, entry in enumerate(saved)}
    found = bytearray(len(saved))  # a byte a tensor: small to gather where names would not be
    missing, misshaped = [], []
    for piece in engine.slices():
        entry = (piece.kind, piece.name)
        if entry not in place:
            missing.append(entry)
            continue
        found[place[entry]] = 1
        if reader.shape(*entry) != piece.shape:
            misshaped.append((*entry, f"{piece.name} (saved {list(reader.shape(*entry))}, now {list(piece.shape)})"))
    everyone = ranks.gather((missing[:1000], misshaped[:1000], bytes(found)))
    extra = [entry for i, entry in enumerate(saved) if not any(seen[i] for _, _, seen in everyone)]
    missing = sorted({entry for lost, _, _ in everyone for entry in lost})
    misshaped = sorted({entry for _, wrong, _ in everyone for entry in wrong})
    if missing or extra or misshaped:
        raise _mismatch(reader.path, missing, extra, misshaped)


Entries = list[tuple[str, str]]


def _mismatch(path: Path, missing: Entries, extra: Entries, misshaped: list[tuple[str, str, str]]) -> CheckpointError:
    model = (PARAM, FROZEN, BUFFER)
    lost, left = ({name for kind, name in entries if kind in model} for entries in (missing, extra))
    config = path / "config.json"
    if lost & left:  # the same name, once trained and once frozen
        return CheckpointError(
            f"{path}: {_listed('parameter', lost & left)} of this run changed between trained and frozen",
            "a run goes on with the parameters that it began to train",
            f"set model.freeze as in {config}, or begin a new run.dir with init.from={path}",
        )
    wrong_shapes = [text for kind, _, text in misshaped if kind in model]
    if lost or left or wrong_shapes:
        found = [
            _listed("tensor", lost) + " missing in the checkpoint" if lost else "",
            _listed("tensor", left) + " not in this model" if left else "",
            _listed("tensor", wrong_shapes) + " of another shape" if wrong_shapes else "",
        ]
        return CheckpointError(
            f"{path} is of another model: " + "; ".join(text for text in found if text),
            "a run goes on with the model it began with",
            f"set the model section as in {config}, or choose another run.dir (init.from={path} takes its weights)",
        )
    kinds = sorted({kind for kind, *_ in [*missing, *misshaped]}), sorted({kind for kind, _ in extra})
    key = "train.ema_decay" if set(kinds[0] + kinds[1]) == {EMA} else "the optim section (and train.ema_decay)"
    return CheckpointError(
        f"{path} was written with another optimizer or average: it lacks {', '.join(kinds[0]) or 'nothing'}, "
        f"and has {', '.join(kinds[1]) or 'nothing'} that this run does not use",
        "a run goes on with the optimizer state that it has",
        f"set {key} as in {config}, or begin a new run.dir with init.from={path}",
    )


def _listed(noun: str, names: Any) -> str:
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
