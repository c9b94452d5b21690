"""What the ranks of the tests of recompute do."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from intern_trainer.batch import Batch
from intern_trainer.engine import Engine, build_engine
from intern_trainer.ranks import Ranks
from intern_trainer.steps import accumulate
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_zoo.metanet.norm import BatchNorm

from tests.distributed.engine_worker import build_debug, debug_batch, debug_config


def steps(ranks: Ranks, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each case two steps of two micro-batches, of one loss where it says `together: 2`, with stochastic depth:
    losses, gradient norms, a number that all running statistics are in, how many batches they saw, the next draw."""
    return [_case(ranks, case | {"accumulation": 2}) for case in cases]


def _case(ranks: Ranks, case: dict[str, Any]) -> dict[str, Any]:
    config = debug_config(case, ranks.world_size)
    options = {"drop_path_rate": 0.5, "drop_path_mode": case.get("mode", "mask")}
    config = config.model_copy(update={"model": config.model.model_copy(update={"image_options": options})})
    engine = build_engine(config, ranks, partial(build_debug, config, ranks))
    task = ContrastiveTask(config, ranks)
    engine.train()
    losses, norms = [], []
    for step in range(2):
        values = accumulate(task, engine, _batches(step, ranks), case.get("together", 1), ranks.device)
        losses.append(float(values["loss"]))
        norms.append(engine.step(1e-4).grad_norm)
    found = {"losses": losses, "norms": norms, **_statistics(engine), "draw": float(torch.rand(1))}
    engine.close()
    return found


def _batches(step: int, ranks: Ranks) -> list[Batch]:
    wholes = [debug_batch(step, index, 2 * ranks.world_size) for index in range(2)]
    return [Batch({n: t[2 * ranks.rank :][:2] for n, t in whole.items()}, [""] * 2) for whole in wholes]


def _statistics(engine: Engine) -> dict[str, Any]:
    norms = [module for module in engine.module.modules() if isinstance(module, BatchNorm)]
    total = sum(float(norm.running_mean.double().abs().sum() + norm.running_var.double().sum()) for norm in norms)
    return {"statistics": total, "batches": sorted({int(norm.num_batches_tracked) for norm in norms})}
