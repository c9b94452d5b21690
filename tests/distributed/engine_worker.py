"""What the ranks of the engine's tests do. Many cases in one process group, because start-up costs more than a case."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from intern_trainer.batch import Batch
from intern_trainer.engine import Engine, build_engine
from intern_trainer.optim import learning_rate
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask

from tests.distributed.towers import Towers, batch, make_config


def run_steps(engine: Engine, config: Any, ranks: Ranks, accumulation: int, steps: Any, make_batch: Any = batch) -> dict[str, list]:
    """Train over `steps` (an iterable of step numbers); losses are means over ranks and micro-batches."""
    task = ContrastiveTask(config, ranks)
    micro = config.train.global_batch // accumulation // ranks.world_size
    engine.train()
    losses, norms, applied = [], [], []
    for step in steps:
        total = torch.zeros(())
        for index in range(accumulation):
            whole = make_batch(step, index, micro * ranks.world_size)
            mine = {name: t[ranks.rank * micro : (ranks.rank + 1) * micro] for name, t in whole.items()}
            loss, _ = task.loss(engine, Batch(mine, [""] * micro))
            engine.backward(loss)
            total += loss.detach().float() / accumulation
        if ranks.world_size > 1:
            dist.all_reduce(total)
        result = engine.step(learning_rate(step, config))
        losses.append(float(total) / ranks.world_size)
        norms.append(result.grad_norm)
        applied.append(result.applied)
    return {"losses": losses, "norms": norms, "applied": applied}


def case_config(case: dict[str, Any], world_size: int, global_batch: int = 8) -> Any:
    micro = global_batch // world_size // case.get("accumulation", 1)
    return make_config(
        train={
            "steps": 20,
            "global_batch": global_batch,
            "micro_batch": micro,
            "precision": case.get("precision", "fp32"),
            "seed": 3,
            "ema_decay": case.get("ema_decay"),
        },
        optim={
            "lr": 1e-2,
            "eps": 1e-4,
            "clip_grad_norm": case.get("clip", 0.5),
            "schedule": {"warmup_steps": 3},
            "name": case.get("optimizer", "adamw"),
        },
        ds={"zero_optimization": {"stage": case["stage"], **case.get("zero", {})}} | case.get("ds", {}),
    )


def parity(ranks: Ranks, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses and gradient norms of each case over 20 steps."""
    results = []
    for case in cases:
        config = case_config(case, ranks.world_size)
        engine = build_engine(config, ranks, Towers)
        result = run_steps(engine, config, ranks, case.get("accumulation", 1), range(case.get("steps", 20)))
        results.append(result | {"stage": engine.facts["zero_stage"], "notes": engine.facts["notes"]})
        engine.close()
    return results
