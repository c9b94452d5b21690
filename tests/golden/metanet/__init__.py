"""Reading the golden files of MetaNet and UniNet; `make_goldens.py` says how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.golden.metanet.seeded import seeded_tensor

_HERE = Path(__file__).parent
GOLDENS = sorted(path.name.removesuffix(".keys.txt") for path in _HERE.glob("*.keys.txt"))


def load_golden(name: str) -> dict[str, Any]:
    """Parameter count, and digests of outputs and of a training pass, of the authors' network `name`."""
    return json.loads((_HERE / f"{name}.json").read_text())


def golden_keys(name: str) -> dict[str, tuple[int, ...]]:
    """The authors' state dict as key -> shape."""
    lines = (line.split(" ", 1) for line in (_HERE / f"{name}.keys.txt").read_text().splitlines())
    return {key: tuple(json.loads(shape)) for key, shape in lines}


def seeded_weights(name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that the digests were made with, under the authors' names, one at a time."""
    for key, shape in golden_keys(name).items():
        yield key, seeded_tensor(key, shape)
