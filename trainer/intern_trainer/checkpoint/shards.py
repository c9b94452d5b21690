"""Writing one rank's slices as safetensors files of bounded size, without a second copy of the state.

safetensors' own writer wants all tensors of a file in memory on the CPU; this one goes through them chunk by chunk, and
checksums and checks what passes by. The format (8 bytes length, JSON header, data) is that of
https://github.com/huggingface/safetensors; its library reads the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from intern_trainer.checkpoint.layout import DIVERGED, FILE_BYTES, entry_key
from intern_trainer.errors import CheckpointError, TrainingError
from intern_trainer.slices import BUFFER, EMA, FROZEN, OPTIM, PARAM, Slice

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
CHUNK_ELEMENTS = 4 << 20
BUG = "please report this as a bug, with the configuration"

Index = dict[str, dict[str, dict[str, Any]]]
"""kind -> name -> {"shape", "dtype", "pieces": [[start, length, file], ...]}"""
Files = dict[str, dict[str, Any]]
"""file name -> {"size": bytes, "sha256": hexadecimal}"""


def write_slices(slices: Iterable[Slice], folder: Path, rank: int, file_bytes: int = FILE_BYTES) -> tuple[Index, Files]:
    """Write `slices` to `folder`; the index of the pieces, and size and checksum of each file.

    Raises:
        TrainingError: a value to be trained, averaged or of the optimizer is not finite.
        OSError: as the file system gives it.
    """
    index: Index = {}
    files: Files = {}
    groups: dict[str, _Group] = {}
    for whole in slices:
        record = {"shape": list(whole.shape), "dtype": DTYPES[whole.tensor.dtype], "pieces": []}
        pieces = index.setdefault(whole.kind, {}).setdefault(whole.name, record)["pieces"]
        group = groups.setdefault(_group_of(whole.kind), _Group())
        for piece in _cut(whole, file_bytes):
            if group.bytes + piece.tensor.nbytes > file_bytes:
                group.write(folder, files)
            if not group.waiting:
                group.file = f"rank-{rank:05d}-{_group_of(whole.kind)}-{group.written:04d}.safetensors"
            group.waiting.append(piece)
            group.bytes += piece.tensor.nbytes
            pieces.append([piece.start, piece.tensor.numel(), group.file])
    for group in groups.values():
        group.write(folder, files)
    return index, files


@dataclass
class _Group:
    """Pieces that go into the next file of one group of kinds."""

    waiting: list[Slice] = field(default_factory=list)
    bytes: int = 0
    written: int = 0
    file: str = ""

    def write(self, folder: Path, files: Files) -> None:
        if self.waiting:
            files[self.file] = _write_file(folder / self.file, self.waiting)
            self.waiting, self.bytes, self.written = [], 0, self.written + 1


def _group_of(kind: str) -> str:
    if kind in (PARAM, FROZEN, BUFFER):
        return "weights"
    return "optim" if kind.startswith(OPTIM) else kind


def _cut(whole: Slice, file_bytes: int) -> Iterator[Slice]:
    """Cut a slice so that each piece fits into a file; nothing for an empty one."""
    most = max(file_bytes // whole.tensor.element_size(), 1)
    for i in range(0, whole.tensor.numel(), most):
        yield Slice(whole.kind, whole.name, whole.shape, whole.start + i, whole.tensor[i : i + most])


def _write_file(path: Path, pieces: list[Slice]) -> dict[str, Any]:
    # wide types first, so that every tensor begins at a multiple of its element's size
    pieces = sorted(pieces, key=lambda piece: -piece.tensor.element_size())
    header, offset = {}, 0
    for piece in pieces:
        end = offset + piece.tensor.nbytes
        header[entry_key(piece.kind, piece.name, piece.start, piece.tensor.numel())] = {
            "dtype": DTYPES[piece.tensor.dtype], "shape": [piece.tensor.numel()], "data_offsets": [offset, end]
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        start = len(text).to_bytes(8, "little") + text
        digest.update(start)
        file.write(start)
        for piece in pieces:
            for data in _chunks(piece):
                digest.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": 8 + len(text) + offset, "sha256": digest.hexdigest()}


def _chunks(piece: Slice) -> Iterator[memoryview]:
    """The bytes of a slice, through host memory a chunk at a time."""
    must_be_finite = piece.kind in (PARAM, EMA) or piece.kind.startswith(OPTIM)  # a buffer may be a mask of -inf
    for start in range(0, piece.tensor.numel(), CHUNK_ELEMENTS):
        chunk = piece.tensor.detach()[start : start + CHUNK_ELEMENTS].cpu().contiguous()
        if must_be_finite and chunk.is_floating_point() and not bool(torch.isfinite(chunk).all()):
            bad = int((~torch.isfinite(chunk)).sum())
            raise TrainingError(
                f"{bad} value(s) of {piece.name} ({piece.kind}) are not finite, so this step is not saved",
                "a checkpoint holds finite numbers only; the older checkpoints stay as they are",
                DIVERGED,
            )
        yield chunk.view(torch.uint8).numpy().data


def merge_indexes(parts: Iterable[Index]) -> Index:
    """What the ranks wrote together: kind -> name -> shape and type, without the pieces.

    Raises:
        CheckpointError: a tensor is there in part, or more than once: the slices of the ranks do not make up the state
            exactly.
    """
    whole: Index = {}
    elements: dict[tuple[str, str], int] = {}
    for part in parts:
        for kind, tensors in part.items():
            for name, tensor in tensors.items():
                facts = {"shape": tensor["shape"], "dtype": tensor["dtype"]}
                if whole.setdefault(kind, {}).setdefault(name, facts) != facts:
                    raise CheckpointError(
                        f"ranks disagree about {name} ({kind}): {whole[kind][name]} and {facts}", fix=BUG
                    )
                elements[kind, name] = elements.get((kind, name), 0) + sum(length for _, length, _ in tensor["pieces"])
    for (kind, name), count in elements.items():
        if count != math.prod(whole[kind][name]["shape"]):
            raise CheckpointError(
                f"{count} elements of {name} ({kind}) were written, its shape is {whole[kind][name]['shape']}", fix=BUG
            )
    return whole
