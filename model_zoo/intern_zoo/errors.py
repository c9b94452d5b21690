"""What a caller of the zoo can do wrong. All are ValueErrors: the zoo does not know the trainer's error classes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(ValueError):
    """A user's mistake in the zoo: what was found, which rule it breaks, and what to change."""

    def __init__(self, found: str, rule: str, fix: str) -> None:
        self.found, self.rule, self.fix = found, rule, fix
        super().__init__(f"{found} {rule} {fix}")


class UnknownModelError(ZooError):
    """No model of that name."""


class ModelConfigError(ZooError):
    """A model option that does not exist or does not fit the others."""


class TokenizerError(ZooError):
    """No tokenizer where one should be, or one that cannot end a text."""


class StateDictError(ZooError):
    """Weights that are not those of the model: keys missing, left over, or of another shape."""


class NoChainError(ZooError):
    """A model that nobody has said how to run in parts."""


def closest(name: str, names: Iterable[str], n: int = 3) -> str:
    """`Did you mean 'a' or 'b'?`, or an empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(names), n=n, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(x) for x in near)}?" if near else ""
