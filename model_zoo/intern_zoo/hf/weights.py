"""Write safetensors files tensor by tensor, so that one tensor at a time is in memory however large the model is.

safetensors' own `save_file` wants a whole file's tensors at once, and copies them. The format is 8 bytes of header
length, a JSON header with each tensor's type, shape and place, then the numbers
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from intern_zoo.errors import StateDictError

PREFIX = "model."
"""The zoo's model is the child `model` of the class that transformers loads, so this stands before all its names."""

INDEX = "model.safetensors.index.json"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass
class _File:
    """One file to be: names with their first byte behind the header, and how many bytes there are so far."""

    places: dict[str, int] = field(default_factory=dict)
    size: int = 0


def write_weights(
    folder: Path, expected: Mapping[str, Tensor], weights: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> int:
    """Write `weights` as model.safetensors, or as several files and an index; gives the number of bytes of the tensors.

    Args:
        expected: names with tensors of the right shape and type; they may be on meta.
        weights: every one of them once, in any order.
        max_shard_bytes: size of a file at most, unless one tensor alone is larger.

    Raises:
        StateDictError: a tensor is missing, left over, or of another shape.
    """
    files = _plan(expected, max_shard_bytes)
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    if len(files) == 1:
        names = ["model.safetensors"]
    file_of = {name: i for i, file in enumerate(files) for name in file.places}
    starts = [_write_header(folder / names[i], file, expected) for i, file in enumerate(files)]
    left = set(expected)
    for name, tensor in weights:
        _check(name, tensor, expected)
        index = file_of[name]
        with (folder / names[index]).open("r+b") as handle:
            handle.seek(starts[index] + files[index].places[name])
            handle.write(_bytes(tensor.to(expected[name].dtype)))
        left.discard(name)
    if left:
        raise StateDictError(
            f"{len(left)} tensor(s) are missing, such as {min(left)}.",
            "A model needs all of its weights.",
            "Use another checkpoint.",
        )
    total = sum(file.size for file in files)
    if len(files) > 1:
        weight_map = {name: names[i] for name, i in sorted(file_of.items())}
        index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (folder / INDEX).write_text(index_text + "\n", encoding="utf-8")
    return total


def _plan(expected: Mapping[str, Tensor], max_shard_bytes: int) -> list[_File]:
    files = [_File()]
    for name, tensor in expected.items():
        size = tensor.numel() * tensor.element_size()
        if files[-1].size and files[-1].size + size > max_shard_bytes:
            files.append(_File())
        files[-1].places[name] = files[-1].size
        files[-1].size += size
    return files


def _write_header(path: Path, file: _File, expected: Mapping[str, Tensor]) -> int:
    """Make the file at its full size with its header; gives the position of its first number."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, start in file.places.items():
        tensor = expected[name]
        end = start + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin aligned
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        first = handle.tell()
        handle.truncate(first + file.size)
    return first


def _check(name: str, tensor: Tensor, expected: Mapping[str, Tensor]) -> None:
    if name not in expected:
        raise StateDictError(
            f"{name} is not in the model.", "Weights must be the model's.", "Use the run's own checkpoint."
        )
    if tensor.shape != expected[name].shape:
        raise StateDictError(
            f"{name} has shape {list(tensor.shape)}, the model's has {list(expected[name].shape)}.",
            "Shapes must be equal.",
            "Use the run's own checkpoint.",
        )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
