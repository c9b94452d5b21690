"""Errors that a user can act on.

Each says what was found (with its numbers), which rule it breaks, and what to change. The command line prints
`str(error)` and exits with `exit_code`; it never shows a stack trace for them. `assert` is for bugs of ours.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Base of all errors that end the program with a message instead of a stack trace.

    Args:
        found: what was found, with its numbers and names.
        rule: the rule that it breaks (may be empty where `found` says it all).
        fix: what to change, down to the key or the command.
    """

    exit_code = 2
    title = "error"

    def __init__(self, found: str, rule: str = "", fix: str = "") -> None:
        super().__init__(found, rule, fix)
        self.found, self.rule, self.fix = found, rule, fix

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.found}"]
        if self.rule:
            lines.append(f"  rule: {self.rule}")
        if self.fix:
            lines.append(f"  fix:  {self.fix}")
        return "\n".join(lines)


class ConfigError(UserError):
    """A wrong setting: an unknown key, a wrong type, an impossible combination."""

    title = "configuration error"


class ConfigErrors(UserError):
    """All configuration errors of one run, shown at once."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__(f"{len(errors)} configuration error(s)")
        self.errors = list(errors)

    def __reduce__(self) -> tuple[type[ConfigErrors], tuple[list[ConfigError]]]:
        """Ranks send errors to each other: made again from the errors, not from the message."""
        return ConfigErrors, (self.errors,)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class DataError(UserError):
    """A shard, a sample or a data source that cannot be used."""

    title = "data error"
    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing, half-written, damaged, or of another model."""

    title = "checkpoint error"
    exit_code = 4


class EnvironmentFault(UserError):
    """The machine, not the configuration, is in the way: a port in use, a package that is not built, a full disk."""

    title = "environment error"
    exit_code = 5


class TrainingError(UserError):
    """Training cannot go on: a loss or gradient that is not finite."""

    title = "training error"
    exit_code = 6


class ExportError(UserError):
    """An export that does not load, or does not compute what the trainer's model computes."""

    title = "export error"
    exit_code = 7
