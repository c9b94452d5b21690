"""Read an exported folder's weights under the zoo's own names: starting points for training, and comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from intern_zoo.errors import StateDictError
from intern_zoo.hf.weights import PREFIX


def read_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder, one at a time.

    Raises:
        StateDictError: there are no weights in the folder, or none of an INTERN export.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise StateDictError(
            f"{folder} holds no model*.safetensors.", "An exported folder does.", "Give another folder."
        )
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                if not name.startswith(PREFIX):
                    raise StateDictError(
                        f"{file} holds {name}.",
                        f"Names of an export begin with {PREFIX!r}.",
                        "Give a folder that we exported.",
                    )
                yield name.removeprefix(PREFIX), weights.get_tensor(name)
