"""What the ranks of the engine's tests do. Many cases in one process group, because start-up costs more than a case."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from intern_trainer.batch import Batch
from intern_trainer.config.schema import Model
from intern_trainer.engine import Engine, build_engine
from intern_trainer.errors import EnvironmentFault
from intern_trainer.optim import learning_rate
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask

from tests.distributed.towers import Towers, batch, make_config


def run_steps(
    engine: Engine, config: Any, ranks: Ranks, accumulation: int, steps: Any, make_batch: Any = batch
) -> dict[str, list]:
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
            loss, _ = task.loss(task.forward(engine, Batch(mine, [""] * micro)))
            engine.backward(loss)
            total += loss.detach().float() / accumulation
        if ranks.world_size > 1:
            dist.all_reduce(total)
        result = engine.step(learning_rate(step, config))
        losses.append(float(total) / ranks.world_size)
        norms.append(result.grad_norm)
        applied.append(result.applied)
    return {"losses": losses, "norms": norms, "applied": applied}


def debug_config(case: dict[str, Any], world_size: int, global_batch: int = 8) -> Any:
    """The real model at debug size; its gradients on noise are large, so its learning rate is small."""
    config = case_config(case, world_size, global_batch)
    model = {
        "image": "metanet_debug",
        "image_options": {"drop_path_rate": 0.0},
        "image_size": 32,
        "embed_dim": 32,
        "text": {"width": 32, "layers": 2, "heads": 2, "context_length": 16},
    }
    changed = {
        "model": Model.model_validate(model),
        "optim": config.optim.model_copy(update={"lr": 1e-4}),
        "parallel": config.parallel.model_copy(update={"recompute": case.get("recompute", "none")}),
    }
    return config.model_copy(update=changed)


def build_debug(config: Any, ranks: Ranks) -> torch.nn.Module:
    """The real towers at temperature 1, so that the roundings of bf16 features are not multiplied by 14."""
    towers = ContrastiveTask(config, ranks).build_model()
    torch.nn.init.zeros_(towers.logit_scale)
    return towers


def debug_batch(step: int, micro: int, size: int) -> dict[str, torch.Tensor]:
    """Noise and random words that end as the tokenizer ends them (the text tower pools at the largest id)."""
    generator = torch.Generator().manual_seed(1000 * step + micro)
    text = torch.randint(1, 49000, (size, 16), generator=generator)
    text[:, -1] = 49407
    return {"image": torch.randn(size, 3, 32, 32, generator=generator), "text": text}


def debug_parity(ranks: Ranks, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As `parity`, for the real two towers and their task."""
    results = []
    for case in cases:
        config = debug_config(case, ranks.world_size)
        engine = build_engine(config, ranks, partial(build_debug, config, ranks))
        results.append(run_steps(engine, config, ranks, case["accumulation"], range(case["steps"]), debug_batch))
        engine.close()
    return results


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
            "lr": 3e-3,
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


def collect(engine: Engine, ranks: Ranks) -> tuple[dict[tuple[str, str], torch.Tensor], dict[str, Any]]:
    """The saved state, whole, on every rank; fails where a piece is missing or saved twice."""
    state: dict[tuple[str, str], torch.Tensor] = {}
    covered: dict[tuple[str, str], torch.Tensor] = {}
    mine = [(s.kind, s.name, s.shape, s.start, s.tensor.clone()) for s in engine.slices()]
    for kind, name, shape, start, tensor in (piece for pieces in ranks.gather(mine) for piece in pieces):
        size = math.prod(shape)
        full = state.setdefault((kind, name), torch.zeros(size, dtype=tensor.dtype))
        count = covered.setdefault((kind, name), torch.zeros(size, dtype=torch.int64))
        full[start : start + tensor.numel()] = tensor
        count[start : start + tensor.numel()] += 1
    wrong = [key for key, count in covered.items() if not bool((count == 1).all())]
    assert not wrong, f"not saved exactly once: {wrong}"
    return state, engine.scalars()


def reader(state: dict[tuple[str, str], torch.Tensor]) -> Any:
    return lambda kind, name, start, length: state[kind, name][start : start + length]


def digest(tensors: Any) -> str:
    """A hash of names and bits."""
    sha = hashlib.sha256()
    for name, tensor in tensors:
        sha.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


class HalfFrozen(Towers):
    """The towers with one frozen tower, as LiT has it."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("stem", "image_mixer"):
            getattr(self, name).requires_grad_(False)


def write_state(ranks: Ranks, payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Train 3 steps, save, train 3 more: what resumed runs are compared with."""
    results = []
    for index, case in enumerate(payload["cases"]):
        config = case_config(case | {"ema_decay": 0.9}, ranks.world_size)
        engine = build_engine(config, ranks, HalfFrozen)
        run_steps(engine, config, ranks, 1, range(3))
        state, scalars = collect(engine, ranks)
        if ranks.is_main:
            torch.save((state, json.dumps(scalars)), Path(payload["folder"]) / f"{index}.pt")
        losses = run_steps(engine, config, ranks, 1, range(3, 6))["losses"]
        with engine.weights("ema"):
            average = digest(engine.gathered_state_dict())
        results.append({"losses": losses, "raw": digest(engine.gathered_state_dict()), "average": average})
        engine.close()
    ranks.barrier()
    return results


def read_state(ranks: Ranks, payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Load what `write_state` saved into engines of other layouts, other seeds, and go on."""
    results = []
    for case in payload["cases"]:
        state, scalars = torch.load(Path(payload["folder"]) / f"{case['from']}.pt")
        config = case_config(case | {"ema_decay": 0.9}, ranks.world_size)
        config = config.model_copy(update={"train": config.train.model_copy(update={"seed": 99})})
        engine = build_engine(config, ranks, HalfFrozen)
        if case.get("warm"):  # an engine that has trained already must forget all of it
            run_steps(engine, config, ranks, 1, range(2))
        engine.load(reader(state), json.loads(scalars))
        again, _ = collect(engine, ranks)
        assert again.keys() == state.keys()
        changed = [key for key in state if not torch.equal(state[key].to(again[key].dtype), again[key])]
        losses = run_steps(engine, config, ranks, 1, range(3, 6))["losses"]
        with engine.weights("ema"):
            average = digest(engine.gathered_state_dict())
        raw = digest(engine.gathered_state_dict())
        results.append({"losses": losses, "changed": changed, "raw": raw, "average": average})
        engine.close()
    return results


def fp16_message(ranks: Ranks, payload: None) -> str:
    try:
        build_engine(case_config({"stage": 1, "precision": "fp16"}, ranks.world_size), ranks, Towers)
    except EnvironmentFault as error:
        return str(error)
    return ""


def several(ranks: Ranks, payload: list[tuple[str, Any]]) -> list[Any]:
    """The results of several functions of this module, in one process group."""
    return [globals()[name](ranks, argument) for name, argument in payload]
