"""How often a stage's parameters are gathered in a step, and how many of them are whole at once: ZeRO inside a pipeline
of two stages with two data-parallel ranks each, the debug towers. Counted at torch.distributed's functions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from intern_trainer.batch import Batch
from intern_trainer.config.load import load_config
from intern_trainer.config.schema import Config
from intern_trainer.engine import Engine, build_engine
from intern_trainer.parallel import Grid, Placement, make_grid
from intern_trainer.ranks import Ranks
from intern_trainer.steps import accumulate
from intern_trainer.tasks import Task, build_task
from intern_zoo.chain import links
from torch import Tensor, nn

STAGES, DATA, MICRO = 2, 2, 2
"""Stages, data-parallel ranks of each, samples of a rank's micro-batch."""
STEPS = 3
"""The last one counts: by then DeepSpeed has seen the order of the modules."""
SHARED = {"stage": 3, "stage3_param_persistence_threshold": 0}
LOW = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
KEPT = {"stage": 3, "stage3_param_persistence_threshold": 10**12}
FULL = ["parallel.recompute=full"]
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "ZeRO-3": (SHARED, []),
    "ZeRO-3, low limits": (SHARED | LOW, []),
    "ZeRO-3, low limits, recompute full": (SHARED | LOW, FULL),
    "ZeRO-3, all persistent": (KEPT, []),
    "ZeRO-2": ({"stage": 2}, []),
}
"""Name -> the ds_config's `zero_optimization`, settings of the recipe."""


class Count:
    """Of the elements that are all-gathered, and of the parameters that are whole meanwhile."""

    def __init__(self) -> None:
        self.module: nn.Module = nn.Identity()
        self.gathered = self.peak = 0
        for name in ("all_gather", "all_gather_into_tensor"):
            setattr(dist, name, self._counted(getattr(dist, name)))

    def begin(self, module: nn.Module) -> None:
        self.module, self.gathered, self.peak = module, 0, 0
        self.look()

    def look(self) -> None:
        self.peak = max(self.peak, whole(self.module.parameters()))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if "intern_trainer" not in sys._getframe(1).f_code.co_filename:  # not the loss's features
                self.gathered += largest([*args, *options.values()])
                self.look()
            return call(*args, **options)

        return counted


def largest(given: Iterable[Any]) -> int:
    """Elements of the largest tensor, or list of tensors: what a gather makes."""
    sizes = (sum(t.numel() for t in x) if isinstance(x, list) else x.numel() for x in given if _holds(x))
    return max(sizes, default=0)


def _holds(x: Any) -> bool:
    return isinstance(x, Tensor | list)


def whole(parameters: Iterable[Any]) -> int:
    """Elements of those that are whole on this rank, or about to be: their buffers are there."""
    return sum(elements(p) for p in parameters if _is_whole(p))


def elements(parameter: Any) -> int:
    """Of the whole parameter, also where ZeRO-3 has shared it out."""
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()


def _is_whole(parameter: Any) -> bool:
    return not hasattr(parameter, "ds_status") or parameter.ds_status.name != "NOT_AVAILABLE"


def work(ranks: Ranks, given: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each case with each schedule and number of micro-batches in `given`."""
    count, rows = Count(), []
    for name, (zero, settings) in CASES.items():
        for schedule, micro_batches in given["steps"]:
            config = configuration(zero, settings, schedule, micro_batches)
            found = measure(ranks, config, count, micro_batches)
            rows.append({"case": name, "schedule": schedule, "micro_batches": micro_batches, "stages": found})
    return rows


def configuration(zero: dict[str, Any], settings: list[str], schedule: str, micro_batches: int) -> Config:
    chosen = {
        "ds.zero_optimization": json.dumps(zero),
        "parallel.pipeline": STAGES,
        "parallel.schedule": schedule,
        "model.image_size": 32,
        "data.lanes": STAGES * DATA,
        "train.global_batch": MICRO * DATA * micro_batches,
        "train.micro_batch": MICRO,
    }
    return load_config(overrides=[*(f"{key}={value}" for key, value in chosen.items()), *settings])


def measure(ranks: Ranks, config: Config, count: Count, micro_batches: int) -> list[dict[str, float]]:
    """By stage, over its parameters. Collective."""
    grid = make_grid(ranks, STAGES)
    task = build_task(config, grid.data)
    engine = build_engine(config, ranks, task.build_model, halves(task, grid, config.parallel.schedule))
    engine.train()
    for step in range(STEPS):
        count.begin(engine.module)
        train_step(engine, task, config, step, micro_batches)
        count.look()  # what is gathered at the end of a step is whole only after the call
    size = sum(map(elements, engine.module.parameters()))
    engine.close()
    return grid.pipe.gather({"parameters": size, "gathered": count.gathered / size, "whole": count.peak / size})


def halves(task: Task, grid: Grid, schedule: str) -> Placement:
    """Of the chain, by links. (Balanced ones depend on the mode of recompute, and these are to be compared.)"""
    with torch.device("meta"):
        model: Any = task.build_model()
    count = len(links(model))
    return Placement(grid, (count // 2, count - count // 2), schedule=schedule)


def train_step(engine: Engine, task: Task, config: Config, step: int, micro_batches: int) -> None:
    generator = torch.Generator().manual_seed(step)
    side, words = config.model.image_size, config.model.text.context_length
    batches = [
        Batch(
            {
                "image": torch.randn(MICRO, 3, side, side, generator=generator),
                "text": torch.randint(1, 49_000, (MICRO, words), generator=generator),
            },
            [""] * MICRO,
        )
        for _ in range(micro_batches)
    ]
    engine.accumulate(micro_batches, step)
    accumulate(task, engine, batches, 1, torch.device("cpu"))
    engine.step(1e-4)
