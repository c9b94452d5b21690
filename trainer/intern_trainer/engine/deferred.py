"""A model's constructor without its memory: large weights are noted, not made, and filled later one at a time.

Inside `Deferred()`, every large tensor that begins as `torch.empty` (as weights of layers do) lives on the meta device,
and what is done to it in place is written on a tape: `normal_`, `clamp_`, ... Random operations are also drawn into a
scratch tensor that is dropped at once, so that the generator moves on as it would have; the tape keeps its state from
before. `fill` plays a tensor's tape. The values are bit for bit those of a plain construction under the same seed,
and memory never holds more than one of these tensors.

(The idea is that of torchdistX's deferred_init; small tensors are real here, so that constructors may compute with
them.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from intern_trainer.heap import give_back

LARGE = 1 << 16
"""Elements from which on a tensor is deferred."""
_GIVE_BACK = 1 << 25
"""Elements drawn (128 MiB) after which the heap returns what it keeps of scratch tensors."""
_OVERWRITES = ("normal_", "uniform_", "zero_", "fill_", "copy_")


class CannotDefer(Exception):
    """A constructor computes with the values of a deferred weight."""


@dataclass(frozen=True)
class _Part:
    """Where in the tensor's storage an operation works."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(view: Tensor) -> _Part:
        return _Part(tuple(view.shape), view.stride(), int(view.storage_offset()))


@dataclass(frozen=True)
class _Operation:
    call: Any
    part: _Part
    args: tuple[Any, ...]
    options: dict[str, Any]
    generator_state: Tensor | None


@dataclass
class _Tape:
    length: int
    dtype: torch.dtype
    storage: Any
    """Kept alive: its address is how views of it are known."""
    operations: list[_Operation] = field(default_factory=list)


class Deferred(TorchDispatchMode):
    """Enter it around a constructor; then `fill` each parameter and buffer.

    Args:
        large: elements from which on a tensor is deferred.

    Raises:
        CannotDefer: inside, where the constructor computes with the values of such a weight.
    """

    def __init__(self, large: int = LARGE) -> None:
        super().__init__()
        self._large, self._drawn = large, 0
        self._tapes: dict[int, _Tape] = {}
        self._trunc_normal = nn.init._no_grad_trunc_normal_

    def __enter__(self) -> Deferred:
        # it draws until all values lie inside the bounds, which on the meta device cannot be seen: noted as a whole
        nn.init._no_grad_trunc_normal_ = self._note_trunc_normal
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        nn.init._no_grad_trunc_normal_ = self._trunc_normal
        super().__exit__(*error)

    def fill(self, tensor: Tensor) -> Tensor:
        """The tensor with its values, on the CPU; the tensor itself where it was not deferred."""
        tape = self._tape(tensor)
        if tape is None:
            return tensor.detach()
        flat = torch.empty(tape.length, dtype=tape.dtype)
        self._account(tape.length)
        before = torch.get_rng_state()
        for done in tape.operations:
            if done.generator_state is not None:
                torch.set_rng_state(done.generator_state)
            done.call(flat.as_strided(done.part.size, done.part.stride, done.part.offset), *done.args, **done.options)
        torch.set_rng_state(before)
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            return self._empty(func, args, kwargs)
        target = args[0] if args and isinstance(args[0], Tensor) else None
        tape = self._tape(target) if target is not None else None
        if tape is None or target is None:
            self._refuse_reading(func, args, kwargs)
            return func(*args, **kwargs)
        if func._schema.arguments[0].alias_info is None:
            raise CannotDefer(f"{func} reads a weight that is not made yet")
        if func._schema.arguments[0].alias_info.is_write:
            self._refuse_reading(func, args[1:], kwargs)
            random = torch.Tag.nondeterministic_seeded in func.tags
            overwrites = func._schema.name.removeprefix("aten::") in _OVERWRITES
            self._note(tape, func, target, args[1:], kwargs, random, overwrites)
            return target
        return func(*args, **kwargs)  # a view

    def _empty(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        made = func(*args, **{**kwargs, "device": "meta"})
        wanted = torch.device(kwargs.get("device") or "cpu")
        if wanted.type != "cpu" or made.numel() < self._large or not made.is_floating_point():
            return func(*args, **kwargs)
        storage = made.untyped_storage()
        self._tapes[storage._cdata] = _Tape(made.numel(), made.dtype, storage)
        return made

    def _note_trunc_normal(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tape = self._tape(tensor)
        if tape is None:
            return self._trunc_normal(tensor, *args, **kwargs)
        self._note(tape, self._trunc_normal, tensor, args, kwargs, random=True, overwrites=True)
        return tensor

    def _note(
        self, tape: _Tape, call: Any, target: Tensor, args: Any, kwargs: Any, random: bool, overwrites: bool
    ) -> None:
        part = _Part.of(target)
        state = torch.get_rng_state() if random else None
        if random:  # numbers are drawn by the strides, so the scratch tensor has the same
            call(torch.empty_strided(part.size, part.stride, dtype=tape.dtype), *args, **kwargs)
            self._account(target.numel())
        if overwrites and target.numel() == tape.length:
            tape.operations.clear()  # nothing of what was there before remains
        kept = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, args)
        tape.operations.append(_Operation(call, part, kept, kwargs, state))

    def _account(self, drawn: int) -> None:
        self._drawn += drawn
        if self._drawn >= _GIVE_BACK:
            self._drawn = 0
            give_back()

    def _refuse_reading(self, func: Any, args: Any, kwargs: Any) -> None:
        def look(value: Any) -> Any:
            if isinstance(value, Tensor) and self._tape(value) is not None:
                raise CannotDefer(f"{func} reads a weight that is not made yet")
            return value

        tree_map(look, (args, kwargs))

    def _tape(self, tensor: Tensor) -> _Tape | None:
        return self._tapes.get(tensor.untyped_storage()._cdata) if tensor.is_meta else None
