"""Parameters that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from intern_trainer.errors import ConfigError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Turn gradients off for the parameters that any pattern names.

    Args:
        patterns: a child's name such as `image` (all of it), or an fnmatch pattern of full parameter names such as
            `image.stages.[01].*`.

    Raises:
        ConfigError: a pattern that matches nothing, or nothing left to train.
    """
    children = dict(model.named_children())
    for pattern in patterns:
        whole = f"{pattern}.*" if pattern in children else pattern
        matched = [p for name, p in model.named_parameters() if fnmatchcase(name, whole)]
        if not matched:
            raise ConfigError(
                f"model.freeze {pattern!r} matches no parameter",
                f"it names a tower ({', '.join(children)}) or is a pattern of parameter names",
                f"parameter names look like {next(name for name, _ in model.named_parameters())}",
            )
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(
            f"model.freeze {list(patterns)} leaves nothing to train", "some parameter is trained", "freeze less"
        )
