"""One rank of DeCLIP's real model and task in engines: ZeRO-0 and 3, one loss of two micro-batches, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from intern_trainer import parallel
from intern_trainer.batch import Batch
from intern_trainer.checkpoint import Progress, load, save
from intern_trainer.config.losses import Loss
from intern_trainer.engine import Engine, build_engine
from intern_trainer.ranks import Ranks
from intern_trainer.steps import accumulate
from intern_trainer.tasks import Task, build_task
from intern_zoo.declip import NOTHING
from torch import Tensor

from tests.distributed.engine_worker import debug_batch, debug_config, digest

GLOBAL_BATCH, QUEUE = 16, 20
MASK = 49408
HEADS = {"queue": QUEUE, "projector": 24, "predictor": 8}


def cases(ranks: Ranks, payload: dict[str, Any]) -> dict[str, Any]:
    """Losses and the queue's digest of each ZeRO stage, before and after resuming; the differences that GradCache
    makes."""
    folder = Path(payload["folder"])
    return {
        "trained": {stage: _train(ranks, stage, folder / stage) for stage in ("0", "3")},
        "resumed": {f"{wrote} to {reads}": _resume(ranks, reads, folder / wrote) for wrote, reads in payload["resume"]},
        "cached": {stage: _cached(ranks, stage) for stage in ("0", "3")},
    }


def _settings(stage: str, ranks: Ranks, accumulation: int = 1) -> Any:
    config = debug_config({"stage": int(stage), "accumulation": accumulation, "clip": 0.0}, ranks.world_size, 16)
    loss = Loss.model_validate({"kind": "declip", "block": 3, "declip": HEADS})
    return config.model_copy(update={"loss": loss})


def _batches(step: int, ranks: Ranks, accumulation: int = 1) -> list[Batch]:
    rows = GLOBAL_BATCH // accumulation // ranks.world_size
    found = []
    for index in range(accumulation):
        first, second = (debug_batch(step, 2 * index + view, rows * ranks.world_size) for view in (0, 1))
        hidden = torch.rand(first["text"].shape, generator=torch.Generator().manual_seed(step)) < 0.2
        hidden[:, -1] = hidden[-1] = False
        whole = {
            "image": first["image"],
            "image2": second["image"],
            "text": first["text"].masked_fill(hidden, MASK),
            "text2": second["text"],
            "text_labels": first["text"].masked_fill(~hidden, NOTHING),
        }
        found.append(Batch({n: t[ranks.rank * rows :][:rows] for n, t in whole.items()}, [""] * rows))
    return found


def _steps(task: Task, engine: Engine, ranks: Ranks, steps: range) -> dict[str, Any]:
    engine.train()
    losses = []
    for step in steps:
        loss = accumulate(task, engine, _batches(step, ranks), 1, ranks.device)["loss"]
        dist.all_reduce(loss)
        engine.step(1e-4)
        losses.append(float(loss) / ranks.world_size)
    queue = engine.module.heads.queue
    return {
        "losses": losses,
        "queue": digest([("features", queue.features), ("pushed", queue.pushed)]),
        "pushed": queue.pushed.tolist(),
    }


def _train(ranks: Ranks, stage: str, run: Path) -> dict[str, Any]:
    config = _settings(stage, ranks)
    task = build_task(config, ranks)
    engine = build_engine(config, ranks, task.build_model)
    before = _steps(task, engine, ranks, range(2))
    save(engine, Progress(2, samples=2 * GLOBAL_BATCH), run, ranks, config)
    after = _steps(task, engine, ranks, range(2, 4))
    engine.close()
    return {"before": before, "after": after}


def _resume(ranks: Ranks, stage: str, run: Path) -> dict[str, Any]:
    config = _settings(stage, ranks)
    task = build_task(config, ranks)
    engine = build_engine(config, ranks, task.build_model)
    load(engine, run / "checkpoints" / "step-00000002", ranks)
    at_start = _steps(task, engine, ranks, range(0))
    after = _steps(task, engine, ranks, range(2, 4))
    engine.close()
    return {"start": at_start, "after": after}


def _cached(ranks: Ranks, stage: str) -> dict[str, float]:
    """The largest relative differences of loss, gradients, buffers and queue of a step whose two micro-batches share a
    loss from the same step with all graphs kept."""
    config = _settings(stage, ranks, accumulation=2)
    task, other = build_task(config, ranks), build_task(config, ranks)
    torch.manual_seed(config.train.seed)
    plain = parallel.apply(task.build_model(), config, ranks).train()
    engine = build_engine(config, ranks, task.build_model)
    engine.train()
    batches = _batches(0, ranks, accumulation=2)
    loss = accumulate(task, engine, batches, 2, ranks.device)["loss"]
    parts = [other.forward(plain, batch) for batch in batches]
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name not in other.shared}
    expected, _ = other.loss(outputs | {"logit_scale": parts[0]["logit_scale"]})
    expected.backward()
    differences = {"loss": _difference(loss, expected.detach())}
    ours, floor = dict(engine.module.named_parameters()), 0.0
    gradients: dict[str, Tensor] = {}
    for name, parameter in plain.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(gradient)
        gradients[name] = gradient / ranks.world_size
        floor = max(floor, 1e-3 * float(gradients[name].abs().max()))
    for name, gradient in gradients.items():
        found = safe_get_full_grad(ours[name])
        differences[name] = _difference(found if found is not None else ours[name].grad, gradient, floor)
    buffers = dict(engine.module.named_buffers())
    differences |= {name: _difference(buffers[name], buffer) for name, buffer in plain.named_buffers()}
    engine.step(0.0)
    engine.close()
    return dict(sorted(differences.items(), key=lambda item: -item[1])[:3])


def _difference(found: Tensor, wanted: Tensor, floor: float = 1e-6) -> float:
    return float((found.double() - wanted).abs().max()) / max(float(wanted.abs().max()), floor)
