"""Which module made the first number that is not finite: the bad step once more, with a look at every tensor.

Both functions run the step's micro-batches again on all ranks, under the random draws of the first time (which are
functions of step and micro-batch), and leave running statistics alone. They cost a host sync a tensor, so only a step
that is bad gets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from intern_zoo.metanet.norm import statistics_kept
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from intern_trainer.batch import Batch
from intern_trainer.ranks import Ranks
from intern_trainer.steps import accumulate

if TYPE_CHECKING:
    from intern_trainer.engine import Engine
    from intern_trainer.tasks import Task

SHOWN = 4
"""Samples named."""


@dataclass
class _First:
    """The first tensor of this rank that is not finite. `looks` counts the tensors looked at until then: all ranks of a
    stage run the same modules, so the lowest count is where it began. `turn`: which comes first of a pipeline's stages.
    """

    turn: int = 0
    looks: int = 0
    what: str = ""
    ids: tuple[str, ...] = ()

    def look(self, what: str, tensor: Tensor, ids: list[str]) -> None:
        if self.what:
            return
        self.looks += 1
        finite = torch.isfinite(tensor)
        if not finite.all():
            rows = finite.reshape(len(ids), -1).all(1).tolist() if len(ids) and tensor.shape[:1] == (len(ids),) else []
            self.what, self.ids = what, tuple(id for id, fine in zip(ids, rows, strict=False) if not fine)


def in_forward(task: Task, engine: Engine, micro_batches: list[Batch], ranks: Ranks) -> str:
    """`first in the output of image.stem, on rank 1: sample a/b/c`. Collective."""
    first, ids = _First(_stage(engine)), list[str]()

    def look(name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        for tensor in _floating(outputs):
            first.look(f"the output of {name or 'the model'}", tensor, ids)

    with (
        statistics_kept(),
        torch.no_grad(),
        _hooks(engine.module, lambda name, module: [module.register_forward_hook(partial(look, name))]),
    ):
        for number, batch in enumerate(micro_batches):
            engine.micro_batch(number)
            ids[:], whole = batch.ids, batch.to(ranks.device)
            for name, tensor in whole.tensors.items():
                if tensor.is_floating_point():
                    first.look(f"the input `{name}`", tensor, ids)
            task.forward(engine, whole)
    return _told(ranks, first, "the loss")


def in_backward(task: Task, engine: Engine, micro_batches: list[Batch], together: int, ranks: Ranks) -> str:
    """`first in the gradient in image.blocks.3, on rank 1`. Collective; leaves no gradients behind."""
    first = _First(-_stage(engine))

    def look(what: str, gradient: Tensor) -> None:
        first.look(what, gradient, [])

    def watched(name: str, tensor: Any) -> Any:
        if not (isinstance(tensor, Tensor) and tensor.requires_grad and tensor.is_floating_point()):
            return tensor
        own = tensor.view_as(tensor)  # whose gradient is that of this module alone, whoever else uses the tensor
        own.register_hook(partial(look, f"the gradient in {name}"))
        return own

    def before(name: str, module: nn.Module, inputs: Any, named: Any) -> Any:
        return tree_map(partial(watched, name), (inputs, named))

    def after(module: nn.Module, inputs: Any, outputs: Any) -> None:
        for tensor in _floating(outputs):
            if tensor.requires_grad:
                tensor.register_hook(partial(look, "the gradient of the loss"))

    def hook(name: str, module: nn.Module) -> list[Any]:
        inside = [
            parameter.register_hook(partial(look, f"the gradient in {name or 'the model'}"))
            for parameter in module.parameters(recurse=False)
            if parameter.requires_grad
        ]
        if not name:
            return [*inside, module.register_forward_hook(after)]
        return [*inside, module.register_forward_pre_hook(partial(before, name), with_kwargs=True)]

    with statistics_kept(), _hooks(engine.module, hook):
        accumulate(task, engine, micro_batches, together, ranks.device)
    engine.discard()
    return _told(ranks, first, "the sum of the gradients")


def _told(ranks: Ranks, first: _First, otherwise: str) -> str:
    """What the rank has to say where it began; `otherwise` made it where no module did."""
    found = [
        (theirs.turn, theirs.looks, rank, theirs) for rank, theirs in enumerate(ranks.gather(first)) if theirs.what
    ]
    if not found:
        return f"first in {otherwise}"
    *_, rank, theirs = min(found, key=lambda one: one[:3])
    more = f" and {len(theirs.ids) - SHOWN} more" if len(theirs.ids) > SHOWN else ""
    samples = f": sample {', '.join(theirs.ids[:SHOWN])}{more}" if theirs.ids else ""
    return f"first in {theirs.what}, on rank {rank}{samples}"


def _stage(engine: Engine) -> int:
    return engine.pipeline.grid.stage if engine.pipeline is not None else 0


def _floating(outputs: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point())


@contextmanager
def _hooks(model: nn.Module, make: Callable[[str, nn.Module], list[Any]]) -> Iterator[None]:
    handles = [handle for name, module in model.named_modules() for handle in make(name, module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
