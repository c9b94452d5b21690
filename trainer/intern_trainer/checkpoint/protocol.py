"""What a checkpoint needs of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from intern_trainer.slices import Read, Slice


class HasState(Protocol):
    """The engine, as far as checkpoints know it. Called on all ranks; `load` may hold collectives, the others none."""

    def slices(self) -> Iterator[Slice]:
        """What this rank owns; the union over ranks is the whole state, each element once. Called twice a save."""
        ...

    def shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Shapes of all parameters and buffers by (kind, name), on every rank."""
        ...

    def scalars(self) -> dict[str, Any]:
        """State that is no tensor (step counts, loss scale), as JSON values; the same on all ranks."""
        ...

    def load(self, read: Read, scalars: dict[str, Any]) -> None:
        """Take all state from `read`, in whatever pieces this layout needs; CheckpointError where it does not fit."""
        ...
