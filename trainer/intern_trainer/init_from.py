"""`init.from`: start a run from weights that exist, whatever made them and however this run divides them over ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from intern_zoo.two_tower import AUXILIARY, OPTIONAL
from torch import Tensor

from intern_trainer.checkpoint.agree import agreed
from intern_trainer.config.schema import Config
from intern_trainer.engine import Engine
from intern_trainer.errors import CheckpointError
from intern_trainer.ranks import Ranks
from intern_trainer.text import check_tokenizer
from intern_trainer.weight_sources import Weights, open_weights

log = logging.getLogger(__name__)

PARTS = ("image.trunk.", "image.projection.", "text.", "logit_scale")
"""What a file of another program holds as a whole or not at all."""
SHOWN = 3


def initialise(engine: Engine, config: Config, ranks: Ranks) -> None:
    """Put the weights that `init.from` names into a new engine. Optimizer and average begin there. Collective.

    A run, checkpoint or export of ours must be of this model; what served its loss alone is left out, and what serves
    this run's loss keeps its fresh weights, unless all of it is there in the same shapes. A file of open_clip or timm
    may lack whole parts, such as the text tower: those stay fresh, too. The log names what does.

    Raises (the same on every rank):
        CheckpointError: it is not there, damaged, or of another model, with the names that do not fit.
    """
    shapes = {name: shape for (_, name), shape in engine.shapes().items()}
    opened: list[Weights] = []

    def open_and_check() -> set[str]:
        opened.append(open_weights(config))
        if opened[0].tokenizer is not None:
            way = "model.text.tokenizer as that run has it (its folder keeps a copy), or another init.from"
            check_tokenizer(config.model.text, opened[0].tokenizer, f"init.from={config.init.from_}", way)
        return check(opened[0], shapes, str(config.init.from_))

    def unreadable(error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{error.filename or config.init.from_} cannot be read: {error.strerror}", fix="correct init.from"
        )

    [fresh, *_] = agreed(ranks, open_and_check, unreadable)
    kept: dict[str, Tensor] = {}
    if fresh:
        log.warning("not in %s, so they start fresh: %s", config.init.from_, ", ".join(part_names(fresh)))
        kept = {name: tensor.reshape(-1) for name, tensor in engine.gathered_state_dict() if name in fresh}

    def read(kind: str, name: str, start: int, length: int) -> Tensor:
        return kept[name][start : start + length] if name in fresh else opened[0].read(name, start, length)

    engine.load_weights(read)


def check(weights: Weights, shapes: dict[str, tuple[int, ...]], where: str) -> set[str]:
    """Names of the model that the weights lack and may lack.

    Raises:
        CheckpointError: something is missing, too much, or of another shape.
    """
    missing = shapes.keys() - weights.shapes
    fresh: set[str] = set()
    if not weights.whole:
        absent = tuple(part for part in PARTS if not any(name.startswith(part) for name in weights.shapes))
        fresh = {name for name in missing if name.startswith(absent)} if absent else set()
    extra = {name for name in weights.shapes.keys() - shapes if not name.startswith(OPTIONAL)}
    unlike = {n for n in shapes.keys() & weights.shapes if not _same_shape(weights.shapes[n], shapes[n])}
    optional = {name for name in shapes if name.startswith(OPTIONAL)}
    auxiliary = {name for name in optional if name.startswith(AUXILIARY)}
    fresh |= (optional - auxiliary) & (missing | unlike)
    if auxiliary & (missing | unlike):
        fresh |= auxiliary  # whole or not at all: half of a queue, or of a head, is none
    misshaped = [f"{name} (there {list(weights.shapes[name])}, here {list(shapes[name])})" for name in unlike - fresh]
    wrong = [
        f"{len(names)} {what} ({_first(names)})"
        for names, what in ((missing - fresh, "missing"), (extra, "too much"), (misshaped, "of another shape"))
        if names
    ]
    if wrong:
        raise CheckpointError(
            f"the tensors of init.from={where} do not fit this model: {'; '.join(wrong)}",
            "all weights of a tower come from the same network, or none do",
            "set the model section (image, image_options, image_size, embed_dim, text) as that model has it",
        )
    return fresh


def part_names(names: Iterable[str]) -> list[str]:
    found = {next(part for part in (*OPTIONAL, *PARTS) if name.startswith(part)) for name in names}
    return [part.rstrip(".") for part in (*PARTS, *OPTIONAL) if part in found]


def _same_shape(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """A number without dimensions is as good as one in a vector."""
    return theirs == ours or (math.prod(theirs) == math.prod(ours) == 1)


def _first(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
