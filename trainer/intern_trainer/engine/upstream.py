"""What a pipeline needs of DeepSpeed 0.19.8 beyond its public interface; all of it is here.

`tests/distributed/test_pipeline.py` and `tests/unit/trainer/engine/test_upstream.py` fail where DeepSpeed moves, and
the latter says what.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist

from intern_trainer.engine.runtime import load_deepspeed
from intern_trainer.parallel.grid import Grid
from intern_trainer.ranks import Ranks

_CHECK = "assert_ints_same_as_other_ranks"


class StageUnit:
    """The "model parallel unit" that DeepSpeed asks about groups: data-parallel are the ranks of one stage, and model
    parallel is the chain of stages, over which it then adds up gradient norms and agrees on overflows.
    """

    def __init__(self, grid: Grid) -> None:
        self._data, self._pipe = grid.data, grid.pipe

    def get_data_parallel_group(self) -> Any:
        return self._data.group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return [self._data.of_run(rank) for rank in range(self._data.world_size)]

    def get_data_parallel_rank(self) -> int:
        return self._data.rank

    def get_data_parallel_world_size(self) -> int:
        return self._data.world_size

    def get_model_parallel_group(self) -> Any:
        return self._pipe.group

    def get_model_parallel_rank(self) -> int:
        return self._pipe.rank

    def get_model_parallel_world_size(self) -> int:
        return self._pipe.world_size

    def get_tensor_model_parallel_rank(self) -> int:
        return 0

    def get_tensor_model_parallel_world_size(self) -> int:
        return 1

    def get_pipeline_model_parallel_rank(self) -> int:
        return 0

    def get_pipeline_model_parallel_world_size(self) -> int:
        return 1


def count_every_stage(module: torch.nn.Module) -> None:
    """Without this mark DeepSpeed counts a parameter in the gradient norm on the first stage alone, in silence."""
    for parameter in module.parameters():
        parameter.model_parallel = True  # type: ignore[attr-defined]


def sum_norms_once(zero_optimizer: Any, group: Any) -> None:
    """DeepSpeed adds up the gradient norm over the stages for each group of parameters by itself: under ZeRO-3 one for
    every `sub_group_size` elements, so that a stage with more parameters than another waits for ever in a reduction
    that the other never joins. Here each stage combines its own groups, and one sum over the stages follows. Overflows
    are agreed on as before, by a maximum.
    """
    reduce = zero_optimizer._model_parallel_all_reduce

    def only_overflows(tensor: Any, op: Any) -> None:
        if op == dist.ReduceOp.MAX:
            reduce(tensor=tensor, op=op)

    def over_stages(norm: torch.Tensor) -> torch.Tensor:
        square = norm.square()
        dist.all_reduce(square, group=group)
        return square.sqrt()

    zero_optimizer._model_parallel_all_reduce = only_overflows
    if hasattr(zero_optimizer, "_get_norm_groups"):  # ZeRO-3
        from deepspeed.runtime.utils import combine_grad_norm_groups

        of_groups = zero_optimizer._get_norm_groups
        zero_optimizer._get_norm_groups = lambda: [over_stages(combine_grad_norm_groups(of_groups()))]
    else:
        of_stage = zero_optimizer.scaled_global_norm
        zero_optimizer.scaled_global_norm = lambda *given, **named: over_stages(of_stage(*given, **named))


def compare_traces_within(ranks: Ranks) -> None:
    """ZeRO-3 compares the order of its modules with that of rank 0 of the whole run, and so waits for ever where stages
    differ; here with the other ranks of the stage. Modules and parameters are numbered on from engine to engine of a
    process, which may have held other parts before: so numbers are compared from the lowest on.
    """
    load_deepspeed()

    def check(numbers: list[int]) -> None:
        lowest = min(numbers, default=0)
        order = [number - lowest for number in numbers]
        for rank, theirs in enumerate(ranks.gather(order)):
            if theirs != order:
                raise RuntimeError(f"rank {ranks.rank} and rank {rank} of a stage ran different modules")

    for name, module in list(sys.modules.items()):
        if name.startswith("deepspeed.runtime.zero") and hasattr(module, _CHECK):
            setattr(module, _CHECK, check)


def compare_traces_of_all() -> None:
    """`compare_traces_within` undone."""
    world = Ranks(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))
    compare_traces_within(world)


def forget_unit() -> None:
    """DeepSpeed keeps the unit of the engine made last for all that are made without one."""
    load_deepspeed().utils.groups.mpu = None
