"""Reading a checkpoint by name and range, whatever layout wrote it: no process group, no GPU, no engine."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intern_trainer.checkpoint import layout, verify
from intern_trainer.checkpoint.progress import Progress
from intern_trainer.checkpoint.shards import DTYPES
from intern_trainer.config.schema import Config
from intern_trainer.errors import CheckpointError
from intern_trainer.slices import BUFFER, EMA, FROZEN, PARAM

TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
OPEN_FILES = 64


class CheckpointReader:
    """One checkpoint, open for reading.

    Files are memory-mapped and only the ranges asked for are read; each file that is touched is compared with its
    checksum once, unless this process has already found the whole checkpoint good.

    Args:
        path: RUN/checkpoints/step-...
        rank: whose index is looked at first. A rank that resumes in the layout it saved in then reads no other rank's
            index.

    Raises:
        CheckpointError: missing, half-written or damaged, naming the file (also later, when a damaged file is first
            touched).
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self.manifest = verify.check_sizes(path)
        self._unchecked = set() if verify.is_verified(path, self.manifest) else set(self.manifest["files"])
        self.world_size = int(self.manifest["world_size"])
        self._parts_left = [(rank + i) % self.world_size for i in range(self.world_size)]
        self._pieces: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._tensors = self._json(layout.TENSORS)
        record = self._json(layout.PROGRESS)
        self.progress = Progress.from_json(record)
        self.scalars: dict[str, Any] = record["scalars"]

    @property
    def config(self) -> Config:
        """The configuration of the run that wrote it.

        Raises:
            CheckpointError: it has keys that this version of the program does not know, or not any more.
        """
        try:
            return Config.model_validate(self._json(layout.CONFIG))
        except ValueError as error:
            version = self.progress.versions.get("intern-trainer", "unknown")
            raise CheckpointError(
                f"{self.path / layout.CONFIG} was written by intern-trainer {version} and does not fit: {error}",
                fix="use that version",
            ) from error

    @property
    def kinds(self) -> list[str]:
        return sorted(self._tensors)

    def names(self, kind: str) -> list[str]:
        """Sorted names of the tensors of a kind; none for a kind that was not saved."""
        return sorted(self._tensors.get(kind, {}))

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        return tuple(self._facts(kind, name)["shape"])

    def dtype(self, kind: str, name: str) -> torch.dtype:
        return TORCH_DTYPES[self._facts(kind, name)["dtype"]]

    def rng(self, rank: int) -> dict[str, Any]:
        return self._json(layout.part_name(rank))["rng"]

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """Elements `start : start + length` of the flattened tensor: 1-D, on the CPU, in the type it was saved in.

        Raises:
            KeyError: it was not saved.
            CheckpointError: the file is damaged.
        """
        size, end = math.prod(self._facts(kind, name)["shape"]), start + length
        if start < 0 or end > size:
            raise CheckpointError(
                f"{start}:{end} of {name} ({kind}) was asked for, which has {size} elements",
                fix="please report this as a bug",
            )
        out = torch.empty(length, dtype=self.dtype(kind, name))
        while True:
            pieces = [
                piece for piece in self._pieces.get((kind, name), []) if piece[0] < end and piece[0] + piece[1] > start
            ]
            if sum(min(end, first + count) - max(start, first) for first, count, _ in pieces) == length:
                break
            if not self._parts_left:
                raise CheckpointError(
                    f"{self.path}: parts of {name} ({kind}) are missing from its indexes", fix=layout.OLDER
                )
            self._load_part(self._parts_left.pop(0))
        for first, count, file in pieces:
            low, high = max(start, first), min(end, first + count)
            key = layout.entry_key(kind, name, first, count)
            out[low - start : high - start] = self._range(file, key, low - first, high - first)
        return out

    def tensor(self, kind: str, name: str) -> Tensor:
        """One full tensor in its shape, on the CPU, in the type it was saved in."""
        shape = self.shape(kind, name)
        return self.read(kind, name, 0, math.prod(shape)).reshape(shape)

    def weights(self, which: Literal["ema", "raw"] = "ema") -> Iterator[tuple[str, Tensor]]:
        """The model's state dict, tensor by tensor, frozen parameters and buffers included.

        Args:
            which: `ema` for the average where the run keeps one (else the weights themselves), `raw` for the weights.
        """
        averaged = set(self.names(EMA)) if which == "ema" else set()
        for kind in (PARAM, FROZEN, BUFFER):
            for name in self.names(kind):
                yield name, self.tensor(EMA if kind == PARAM and name in averaged else kind, name)

    def close(self) -> None:
        self._open.clear()

    def _facts(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self._tensors[kind][name]
        except KeyError:
            raise KeyError(f"{name} ({kind}) is not in {self.path}") from None

    def _load_part(self, rank: int) -> None:
        for kind, tensors in self._json(layout.part_name(rank))["tensors"].items():
            for name, tensor in tensors.items():
                self._pieces.setdefault((kind, name), []).extend(
                    (int(s), int(n), str(file)) for s, n, file in tensor["pieces"]
                )

    def _range(self, file: str, key: str, low: int, high: int) -> Tensor:
        handle = self._open.get(file)
        try:
            if handle is None:
                handle = safe_open(self._checked(file), framework="pt")
                self._open[file] = handle
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(file)
            return handle.get_slice(key)[low:high]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path / file} is damaged ({error})", fix=layout.OLDER) from error

    def _json(self, name: str) -> dict[str, Any]:
        file = self._checked(name)
        try:
            return json.loads(file.read_bytes())
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{file} is damaged ({error})", fix=layout.OLDER) from error

    def _checked(self, name: str) -> Path:
        """The file, compared with its checksum when first touched. A name that the manifest lacks is refused."""
        file = layout.inside(self.path, name)
        if name not in self.manifest["files"]:
            raise CheckpointError(f"{file} is not a file of this checkpoint's manifest", fix=layout.OLDER)
        if name in self._unchecked:
            verify.check_file(self.path, name, self.manifest)
            self._unchecked.discard(name)
        return file
