"""Files that the tools write where the user says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intern_trainer.data.storage import write_atomically
from intern_trainer.errors import EnvironmentFault


def write_text(path: Path, text: str) -> None:
    """UTF-8. Raises EnvironmentFault: the file cannot be written."""
    guarded(path, lambda: write_atomically(path, text.encode()))


def guarded(path: Path, write: Callable[[], object]) -> None:
    """Raises EnvironmentFault in place of an OSError of `write`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be written: {error.strerror}", "", "name a file in a folder that you may write to"
        ) from error
