"""One place to make an image model by name, and to list the names."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from intern_zoo.errors import UnknownModelError, closest

_builders: dict[str, Callable[..., nn.Module]] = {}


def register(name: str, builder: Callable[..., nn.Module]) -> None:
    """Make `create_model(name, **overrides)` call `builder(**overrides)`."""
    _builders[name] = builder


def register_all(names: Iterable[str], builder: Callable[..., nn.Module]) -> None:
    """Register several names at once; `builder` gets the name as its first argument."""
    for name in names:
        register(name, partial(builder, name))


def create_model(name: str, **overrides: Any) -> nn.Module:
    """The model `name` with new random weights, some of its options changed by `overrides`.

    MetaNets take the fields of `MetaNetConfig` (`num_classes`, `drop_path_rate`, `norm`, `depths`, ...), timm's
    models timm's. Every model has `num_features` (width of the pooled features), `forward_features(x)` and
    `forward_head(features, pre_logits=True) -> [b, num_features]`. `num_classes=0` leaves the classifier out.
    Raises UnknownModelError with the nearest names, or ModelConfigError on an option that does not exist.
    """
    if name not in _builders:
        raise UnknownModelError(
            f"Unknown model {name!r}.",
            closest(name, _builders) or f"There are {len(_builders)} models.",
            "intern_zoo.list_models('metanet*') lists them.",
        )
    return _builders[name](**overrides)


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, sorted: `list_models("metanet*")`."""
    return sorted(fnmatch.filter(_builders, pattern))
