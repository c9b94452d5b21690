"""What one micro-batch costs, measured: the model runs forward and backward on fake tensors, which have shapes and no
values, so that a model of any size takes seconds and no memory, and nothing has to be derived block by block.

Saved tensors are counted by distinct storage, as autograd's hooks see them. Each operation's FLOPs and the bytes that
it reads and writes are noted; its time on a device is the longer of the two (the roofline).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from intern_zoo.metanet.norm import BatchNorm
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from intern_trainer.blocks import repeats_cheaply

aten = torch.ops.aten


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any, out_val: Any = None, **_: Any) -> int:
    """Gradients of input and weight, those that are asked for; torch's own count leaves the groups out."""
    return sum(t is not None for t in out_val[:2]) * 2 * grad.numel() * weight[0].numel()


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    aten.convolution_backward: _convolution_backward,
}
OUTSIDE = ""
"""Name of what lies in no unit."""


@dataclass(frozen=True)
class Operation:
    """FLOPs, bytes read and written; `product` for matrix products, convolutions and attention."""

    flops: int
    moved: int
    product: bool


@dataclass
class Unit:
    """One block, that recompute and pipelines take as a whole; or everything outside of blocks.

    Attributes:
        saved: bytes kept for the backward pass, its input aside. given: bytes of its input.
        parameters: in it. forward, backward: operations of its passes; of a model that is measured in one piece, all of
            the backward pass is OUTSIDE's.
        cheap: whether selective recompute takes it. norm_widths: channels of each batch norm in it.
    """

    name: str
    parameters: int = 0
    cheap: bool = False
    norm_widths: tuple[int, ...] = ()
    saved: int = 0
    given: int = 0
    forward: list[Operation] = field(default_factory=list)
    backward: list[Operation] = field(default_factory=list)


@dataclass
class Cost:
    """Of one micro-batch.

    Attributes:
        units: in the order in which they run; of a model in one piece, OUTSIDE comes first.
        working: the most bytes that the backward pass holds at once beyond what was saved. largest_gradient: bytes of
            the largest parameter's gradient, which is among them and does not grow with the samples.
    """

    samples: int
    units: list[Unit]
    working: int
    largest_gradient: int

    @property
    def saved(self) -> int:
        return sum(unit.saved for unit in self.units)

    @property
    def backward(self) -> list[Operation]:
        """Operations of the whole backward pass."""
        return [operation for unit in self.units for operation in unit.backward]


Inputs = Callable[[], dict[str, Tensor]]


def measure(model: nn.Module, inputs: Inputs, units: Sequence[tuple[str, nn.Module]], dtype: torch.dtype) -> Cost:
    """Run `model` (on meta) once forward and backward.

    Args:
        inputs: makes the keyword arguments of its forward; called among fake tensors.
        units: blocks of the model by name, none inside another.
        dtype: of its parameters; floating inputs are of that type, too, as the engine makes them.
    """
    with FakeTensorMode():
        make_fake(model, dtype)
        model.train()
        meter = Meter(model, units)
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs().items()}
        samples = len(next(iter(tensors.values())))
        meter.run(lambda: model(**tensors))
        return Cost(samples, list(meter.units.values()), meter.working, largest_parameter(model))


def largest_parameter(model: nn.Module) -> int:
    """In bytes."""
    return max((parameter.nbytes for parameter in model.parameters()), default=0)


def make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters and buffers on meta by fake ones on the CPU; what was shared stays shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers):
            for name, old in place.items():
                if old is None:
                    continue
                if id(old) not in made:
                    trained = isinstance(old, nn.Parameter)
                    new = torch.empty(old.shape, dtype=dtype if trained and old.is_floating_point() else old.dtype)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if trained else new
                place[name] = made[id(old)]  # type: ignore[assignment]


class Meter(TorchDispatchMode):
    """Notes every operation, every storage that lives, and every one that is saved."""

    def __init__(self, model: nn.Module, units: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self._model, self._modules = model, list(units)
        self.units = {OUTSIDE: Unit(OUTSIDE)} | {name: _unit_of(name, module) for name, module in units}
        self.units[OUTSIDE].parameters = sum(p.numel() for p in model.parameters()) - sum(
            unit.parameters for unit in self.units.values()
        )
        self._unit = self.units[OUTSIDE]
        self._live: dict[int, int] = {t.untyped_storage()._cdata: 0 for t in _own(model)}
        self._own = set(self._live)
        self._saved: set[int] = set()
        self._kept_alive: list[Any] = []
        self._forward = True
        self._now = self._peak = self._kept = 0

    def run(self, forward: Callable[[], Any], given: Sequence[Tensor] = ()) -> Any:
        """`forward`, whose result is given back, and the backward pass from what of it is new.

        Args:
            given: tensors that are there already, of which some may be in the result.
        """
        for tensor in given:
            self._note(tensor.untyped_storage())
        with self, self._watching():
            with saved_tensors_hooks(self._save, lambda tensor: tensor):
                result = forward()
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.grad_fn is not None]
            gradients = [torch.ones_like(output) for output in outputs]
            self._begin_backward()
            torch.autograd.backward(outputs, gradients)
        return result

    @property
    def working(self) -> int:
        """The most bytes that the backward pass held at once beyond what was saved."""
        return max(0, self._peak - self._kept)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        handles = [hook for name, module in self._modules for hook in self._watch(self.units[name], module)]
        handles += [p.register_post_accumulate_grad_hook(_forget) for p in self._model.parameters() if p.requires_grad]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, unit: Unit, module: nn.Module) -> Iterable[Any]:
        def enter(_: nn.Module, arguments: Any) -> None:
            self._unit = unit
            unit.given = sum(t.nbytes for t in arguments if isinstance(t, Tensor))

        def leave(*_: Any) -> None:
            self._unit = self.units[OUTSIDE]

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._saved and key not in self._own:
            self._saved.add(key)
            self._kept_alive.append(storage)  # its address must not become another one's
            self._unit.saved += storage.nbytes()
            self._kept += storage.nbytes()
        return tensor

    def _begin_backward(self) -> None:
        self._forward, self._unit = False, self.units[OUTSIDE]
        self._kept_alive.clear()
        self._peak = self._now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not func.is_view and made:
            read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            count = _FLOPS.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
            moved = sum(_size(t) for t in read) + sum(_size(t) for t in made)
            operations = self._unit.forward if self._forward else self._unit.backward
            operations.append(Operation(int(flops), moved, count is not None))
        for tensor in made:
            self._note(tensor.untyped_storage())
        self._peak = max(self._peak, self._now)
        return result

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


def _unit_of(name: str, module: nn.Module) -> Unit:
    return Unit(name, **described(module))


def described(module: nn.Module) -> dict[str, Any]:
    """`parameters`, `cheap` and `norm_widths` of its unit."""
    widths = tuple(m.num_features for m in module.modules() if isinstance(m, BatchNorm))
    parameters = sum(p.numel() for p in module.parameters())
    return {"parameters": parameters, "cheap": repeats_cheaply(module), "norm_widths": widths}


def _own(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _size(tensor: Tensor) -> int:
    """Bytes that are touched: an expanded tensor's elements lie in one place."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
