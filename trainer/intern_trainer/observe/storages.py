"""What a program's objects really hold: bytes of the distinct tensor storages that are reached from them."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

LEAVES = (str, bytes, int, float, bool, type, types.ModuleType, types.FunctionType, torch.dtype, torch.device)


def storages(root: Any) -> dict[int, int]:
    """Bytes of each distinct tensor storage that attributes, containers and gradients lead to, by its address."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or thing is None or isinstance(thing, LEAVES):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
            waiting.append(thing.grad if thing.is_leaf else None)
        waiting += _parts(thing)
    return found


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, list | tuple | set | frozenset) or type(thing).__module__ == "collections":
        return list(thing)
    return list(getattr(thing, "__dict__", {}).values())
