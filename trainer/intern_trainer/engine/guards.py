"""Guards against what DeepSpeed 0.19.8 gets wrong without a word."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from intern_trainer.engine.runtime import load_deepspeed
from intern_trainer.errors import ConfigError, TrainingError
from intern_trainer.ranks import Ranks


def refuse_scalar_parameters(model: nn.Module) -> None:
    """DeepSpeed broadcasts parameters as bytes and dies on one without dimensions, in words that name neither it nor
    the reason.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if names:
        raise ConfigError(
            f"no dimensions (shape ()): parameter {', '.join(f'`{name}`' for name in names)}",
            "DeepSpeed cannot share a 0-dim parameter among ranks",
            "give it the shape (1,) in the model: nn.Parameter(torch.zeros(1))",
        )


class FrozenSet:
    """What was frozen when the engine was built stays frozen: DeepSpeed never trains a parameter that is unfrozen
    later, and says nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self._flags = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]

    def check(self) -> None:
        changed = [name for name, parameter, flag in self._flags if parameter.requires_grad != flag]
        if changed:
            raise TrainingError(
                f"requires_grad of {len(changed)} parameters such as `{changed[0]}` changed after the engine was made",
                "DeepSpeed divides what is trained among ranks once; a parameter unfrozen later is never trained",
                "choose by model.freeze, and start each phase as a run of its own with init.from",
            )


class SameModules:
    """All ranks must run the same modules in a step.

    Where they do not, ZeRO-1 and 2 add gradients of different parameters to each other, in silence (ZeRO-3 stops by
    itself, or waits for ever). A sum over the numbers of the modules that this rank ran is compared over ranks before
    the update. A compiled block counts as one.

    Args:
        trace: remember the names in their order, compare that, and name the first difference.
    """

    def __init__(self, model: nn.Module, trace: bool = False) -> None:
        self._sum = 0
        self._trace: list[str] | None = [] if trace else None
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)) or "forward" in module.__dict__:
                module.register_forward_pre_hook(self._hook(name, zlib.crc32(name.encode())))

    def _hook(self, name: str, number: int) -> Any:
        def count(module: nn.Module, inputs: Any) -> None:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self._sum += number
                if self._trace is not None:
                    self._trace.append(name)

        return count

    def check(self, ranks: Ranks) -> None:
        mine, self._sum = self._sum, 0
        names = list(self._trace or [])
        if self._trace is not None:
            mine = zlib.crc32("\n".join(self._trace).encode())
            self._trace.clear()
        spread = torch.tensor([mine, -mine], dtype=torch.int64, device=ranks.device)
        dist.all_reduce(spread, op=dist.ReduceOp.MAX, group=ranks.group)
        high, low = spread.tolist()
        if high != -low:
            where = _first_difference(ranks.gather(names)) if self._trace is not None else ""
            raise TrainingError(
                f"ranks ran different modules in one step{where}",
                "ranks gather parameters and reduce gradients in the order in which modules run, so all run the same",
                "drop samples, not modules (stochastic depth by a factor of 0); give every rank work for every tower"
                + ("" if where else "; guard.trace=true names the first difference"),
            )


def _first_difference(traces: list[list[str]]) -> str:
    """Between rank 0 and the rank that parts from it first."""

    def same(rank: int) -> int:
        pairs = zip(traces[0], traces[rank], strict=False)
        return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(map(len, traces)))

    def ran(rank: int, index: int) -> str:
        return f"`{traces[rank][index]}`" if index < len(traces[rank]) else "nothing more"

    other = min((rank for rank in range(1, len(traces)) if traces[rank] != traces[0]), key=same)
    index = same(other)
    return f": call {index + 1} was {ran(0, index)} on rank 0 and {ran(other, index)} on rank {other}"


@contextmanager
def refusal(zero_optimizer: Any) -> Iterator[None]:
    """Inside, the optimizer's `step` drops its gradients as it does those that are not finite; fp16's loss scale stays.

    Stages 1, 2 and 3 ask for the new loss scale right before they decide.
    """

    def refuse(overflow: bool) -> None:
        zero_optimizer.overflow = True

    zero_optimizer._update_scale = refuse
    try:
        yield
    finally:
        del zero_optimizer._update_scale


def announce_borrowed_weights(model: nn.Module) -> None:
    """ZeRO-3 gathers a module's own weights before its forward pass. torch's attention uses those of its `out_proj`
    without calling it; DeepSpeed takes note of that the first time they are not there by chance, and where that is
    after its trace was recorded, it ends the run with a "tracing error". To be called after the model is sharded.
    """
    register = load_deepspeed().zero.register_external_parameter
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            for parameter in module.out_proj.parameters():
                register(module, parameter)


def forget_old_gradients(zero_optimizer: Any, stage: int) -> None:
    """ZeRO-3, and ZeRO-1 and 2 with offload, never clear their gradients.

    A parameter that a step does not use would get the previous step's gradient again; one that the first micro-batch
    does not use would add to it. To be called before the first forward of each step.
    """
    if stage == 3:
        zero_optimizer.grad_partitions_flat_buffer.zero_()
        zero_optimizer.micro_step_id = 1  # every micro-batch adds to the cleared buffer
    elif stage > 0 and zero_optimizer.cpu_offload:
        for holder in zero_optimizer.single_partition_of_fp32_groups:
            holder.grad.zero_()
        for gradient in zero_optimizer.accumulated_grads_in_cpu.values():
            gradient.zero_()


def collect_offloaded_gradients(zero_optimizer: Any, stage: int) -> None:
    """With offload, gradients reach the host in the last micro-batch alone, and only where that one used the parameter.

    To be called before the step: brings the others, too.
    """
    if stage == 3 and zero_optimizer.offload_optimizer:
        for holder in zero_optimizer.fp32_partitioned_groups_flat:
            holder.grad.zero_()
        zero_optimizer._finalize_offload_gradient_accumulation()
    elif stage in (1, 2) and zero_optimizer.cpu_offload:
        accumulated = zero_optimizer._offload_accumulated_param_ids
        if accumulated - zero_optimizer.norm_for_param_grads.keys():
            zero_optimizer._finalize_cpu_offload_gradient_accumulation()
