"""Making the model: whole on every rank, or sharded from the start and whole on none (ZeRO-3). Either way its fp32
weights are the same, and kept exact.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intern_trainer.engine.deferred import CannotDefer, Deferred
from intern_trainer.engine.guards import refuse_scalar_parameters
from intern_trainer.engine.runtime import load_deepspeed
from intern_trainer.errors import ConfigError, TrainingError, UserError
from intern_trainer.ranks import Ranks

Build = Callable[[], nn.Module]
Shards = dict[str, tuple[int, Tensor]]
"""By parameter name: the place of this rank's first element in the flattened parameter, and the fp32 elements from
there on.
"""


def build_model(build: Build, ranks: Ranks, deferred: Deferred | None = None) -> nn.Module:
    """Call `build`, inside `deferred` if given; what goes wrong on one rank is raised on all of them, so that none
    waits for ever.
    """
    model: nn.Module | None = None
    failure: Exception | None = None
    try:
        with deferred or nullcontext():
            model = build()
        refuse_scalar_parameters(model)
    except CannotDefer as error:
        failure = ConfigError(
            f"the model cannot be made sharded: its constructor computes with weights ({error})",
            "under ZeRO-3 large weights are made one at a time, after the constructor",
            "a ds_config with zero_optimization.stage 2, or another model",
        )
    except Exception as error:
        failure = error
    told = failure if failure is None or isinstance(failure, UserError) else _foreign(failure, ranks.rank)
    failures = [error for error in ranks.gather(told) if error is not None]
    if failure is not None:
        raise failure
    if failures:
        raise failures[0]
    assert model is not None
    return model


def _foreign(error: Exception, rank: int) -> TrainingError:
    """What the other ranks are told of an error that is a bug; it keeps its stack trace on its own rank."""
    return TrainingError(f"rank {rank} could not build the model: {type(error).__name__}: {error}")


def whole_weights(model: nn.Module) -> Shards:
    """The fp32 weights of trainable parameters as they are before the engine rounds them. Not a copy: the engine
    replaces the tensors.
    """
    return {name: (0, p.detach().float().reshape(-1)) for name, p in model.named_parameters() if p.requires_grad}


def shard(
    model: nn.Module,
    part: nn.Module,
    deferred: Deferred,
    ds_config: dict[str, Any],
    dtype: torch.dtype,
    ranks: Ranks,
    mpu: Any = None,
) -> Shards:
    """Divide the model's parameters among the ranks by `zero.Init`, one after another; see `fill`. DeepSpeed's own
    way, building under `with zero.Init()`, loses what a parent's constructor initialises after its children are
    sharded, makes other random weights than an unsharded build, and rounds them to `dtype` before the fp32 masters are
    taken.

    Returns:
        this rank's shards in fp32, from before the rounding.
    """
    init = load_deepspeed().zero.Init(
        config_dict_or_path=ds_config, dtype=dtype, data_parallel_group=ranks.group, mpu=mpu
    )
    shards: Shards = {}

    def make(name: str, full: Tensor, trained: bool, facts: dict[str, Any]) -> nn.Parameter:
        if trained:
            shards[name] = _shard_of(full, ranks)
        new = nn.Parameter(full.to(dtype) if full.is_floating_point() else full, requires_grad=trained)
        new.__dict__.update(facts)
        init._convert_to_zero_parameters([new])
        return new

    fill(model, part, deferred, make, ranks)
    return shards


def make_whole(model: nn.Module, part: nn.Module, deferred: Deferred, ranks: Ranks) -> Shards:
    """Give every rank all weights of `model`, a part of the deferred one; as `whole_weights`."""
    weights: Shards = {}

    def make(name: str, full: Tensor, trained: bool, facts: dict[str, Any]) -> nn.Parameter:
        new = nn.Parameter(full, requires_grad=trained)
        if trained:
            weights[name] = 0, new.detach().float().reshape(-1)
        return new

    fill(model, part, deferred, make, ranks)
    return weights


def fill(
    model: nn.Module,
    part: nn.Module,
    deferred: Deferred,
    make: Callable[[str, Tensor, bool, dict[str, Any]], nn.Parameter],
    ranks: Ranks,
) -> None:
    """Put parameters with values in the place of deferred ones: what `make` makes of name, full fp32 values on the
    device, whether it is trained, and attributes.

    The ranks take turns in filling a parameter and sending it to the others, so that drawing the weights is shared work
    too; none ever holds more than what `make` keeps, one parameter, and those too small to have been deferred.

    Args:
        part: a module of modules and parameters of `model` that stand there, too.
    """
    replaced: dict[int, nn.Parameter] = {}
    prefixes = {id(module): prefix for prefix, module in model.named_modules()}
    seen: set[int] = set()
    for module in [*model.modules(), *part.modules()]:
        for key, parameter in list(module._parameters.items()):
            if parameter is None or id(module) in seen:
                continue
            if id(parameter) not in replaced:
                full = _from_owner(parameter, deferred, len(replaced) % ranks.world_size, ranks)
                name = f"{prefixes[id(module)]}.{key}".lstrip(".")
                replaced[id(parameter)] = make(name, full, parameter.requires_grad, parameter.__dict__)
            module._parameters[key] = replaced[id(parameter)]
        for key, buffer in list(module._buffers.items()):
            if buffer is not None and id(module) not in seen:
                module._buffers[key] = _from_owner(buffer, deferred, 0, ranks)
        seen.add(id(module))


def _from_owner(tensor: Tensor, deferred: Deferred, owner: int, ranks: Ranks) -> Tensor:
    """The owner's values on this rank's device; the other ranks bring the shape alone."""
    full = (
        deferred.fill(tensor).to(ranks.device).contiguous()
        if ranks.rank == owner
        else torch.empty(tensor.shape, dtype=tensor.dtype, device=ranks.device)
    )
    if ranks.world_size > 1:
        dist.broadcast(full.reshape(-1).view(torch.uint8), src=ranks.of_run(owner), group=ranks.group)
    return full


def _shard_of(full: Tensor, ranks: Ranks) -> tuple[int, Tensor]:
    part = -(-full.numel() // ranks.world_size)
    start = min(part * ranks.rank, full.numel())
    return start, full.reshape(-1)[start : start + part].float().clone()
