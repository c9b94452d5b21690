"""From a configuration to an engine."""

from __future__ import annotations

import logging
from typing import Any

import torch

from intern_trainer import parallel
from intern_trainer.config import ds
from intern_trainer.config.schema import Config
from intern_trainer.determinism import seed_all, seed_of_rank, set_deterministic
from intern_trainer.engine import guards
from intern_trainer.engine.average import Average
from intern_trainer.engine.construct import Build, build_model, make_whole, shard, whole_weights
from intern_trainer.engine.deferred import Deferred
from intern_trainer.engine.engine import Engine
from intern_trainer.engine.layout import layout_of
from intern_trainer.engine.optimizers import build_optimizer
from intern_trainer.engine.plain import PlainStage
from intern_trainer.engine.runtime import load_deepspeed
from intern_trainer.engine.transfer import shapes
from intern_trainer.engine.upstream import StageUnit, compare_traces_within, count_every_stage, sum_norms_once
from intern_trainer.errors import ConfigError, ConfigErrors, EnvironmentFault
from intern_trainer.optim import describe_groups, exempt_from_decay, joined, parameter_groups
from intern_trainer.parallel import Draws, Placement, alone, cut_out
from intern_trainer.ranks import Ranks

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_engine(config: Config, ranks: Ranks, build: Build, placement: Placement | None = None) -> Engine:
    """Make the model and everything that trains it, or the part of it that a pipeline gives to this rank. Collective.

    The weights are those that `build` makes under the seed `train.seed`, the same for every ZeRO stage, precision,
    pipeline and number of ranks; afterwards each rank's generators get a seed of their own.

    Args:
        config: the run's configuration. ranks: all of the run, from `init_ranks`; DeepSpeed adopts their process group.
        build: makes the model with its frozen parameters marked. With ZeRO-3 or a pipeline its large weights are then
            still to be filled, so it must not compute with them.
        placement: where this rank stands, and how the model is cut; None: no pipeline.

    Raises:
        ConfigErrors, ConfigError, EnvironmentFault: the ds_config, the model, the precision or the optimizer cannot
            be had here.
    """
    place = placement or alone(ranks)
    grid, data = place.grid, place.grid.data
    disagreements = ds.agree(config.ds, config, data.world_size)
    if disagreements:
        raise ConfigErrors(disagreements)
    deepspeed = load_deepspeed()
    _check_precision(config, ranks)
    set_deterministic(config)
    stage, dtype = ds.zero_stage(config), DTYPES[config.train.precision]
    ds_config = ds.effective(config, data.world_size)
    seed_all(config.train.seed)
    deferred = Deferred() if stage == 3 or grid.stages > 1 else None
    model = build_model(build, ranks, deferred)
    whole, exempt = shapes(model), exempt_from_decay(model)
    parallel.apply(model, config, data)
    part = cut_out(model, place)
    draws = Draws(model, config.train.seed, data.rank)
    seed_all(seed_of_rank(config, ranks.rank))
    mpu = StageUnit(grid) if grid.stages > 1 else None
    if deferred is None:
        weights = whole_weights(model)
    elif stage == 3:
        weights = shard(model, part, deferred, ds_config, dtype, data, mpu)
        guards.announce_borrowed_weights(part)
    else:
        weights = make_whole(model, part, deferred, data)
    groups = parameter_groups(model, config, exempt)
    _check_trains(groups, place)
    optimizer = build_optimizer(groups, config, ranks.device, offload=_offloads(ds_config))
    engine: Any
    if mpu is not None and stage == 0:
        engine = PlainStage(part, optimizer, data)
    else:
        if mpu is not None:
            count_every_stage(part)
            compare_traces_within(data)
        engine, *_ = deepspeed.initialize(
            model=part, optimizer=optimizer, config=ds_config, dist_init_required=False, mpu=mpu
        )
        if mpu is not None:
            sum_norms_once(engine.optimizer, grid.pipe.group)
    layout = layout_of(engine, model, stage, data)
    _restore_masters(layout, weights)
    average = Average(layout.holders, config.train.ema_decay) if config.train.ema_decay else None
    facts = _facts(model, config, stage, groups, place)
    if ranks.is_main:
        _announce(facts)
    return Engine(engine, model, optimizer, layout, average, config, place, stage, dtype, facts, whole, draws)


@torch.no_grad()
def _restore_masters(layout: Any, weights: dict[str, tuple[int, torch.Tensor]]) -> None:
    """DeepSpeed takes its fp32 masters from weights that it has rounded before: put the exact ones back."""
    for piece in layout.pieces:
        first, values = weights[piece.name]
        piece.put(layout.holders[piece.holder], values[piece.start - first :][: piece.length])
    layout.refresh()


def _offloads(ds_config: dict[str, Any]) -> bool:
    device = (ds_config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none")
    return device != "none"


def _check_precision(config: Config, ranks: Ranks) -> None:
    if config.train.precision != "fp16":
        return
    if not load_deepspeed().accelerator.get_accelerator().is_fp16_supported():
        raise EnvironmentFault(
            f"train.precision is fp16, and this {ranks.device.type} has no fp16 arithmetic",
            "fp16 needs a GPU, or a CPU with AVX512-FP16 (Sapphire Rapids and later)",
            "train.precision=bf16, or fp32",
        )


def _check_trains(groups: list[dict[str, Any]], place: Placement) -> None:
    """Collective."""
    idle = [stage for stage, found in enumerate(place.grid.pipe.gather(bool(groups))) if not found]
    if idle:
        raise ConfigError(
            f"stage {idle[0]} of the pipeline holds no parameter that is trained"
            if place.grid.stages > 1
            else "the model holds no parameter that is trained",
            "every rank has something to update",
            "a smaller model.freeze" + (", or parallel.cut with other pieces" if place.grid.stages > 1 else ""),
        )


def _facts(model: Any, config: Config, stage: int, groups: list[dict[str, Any]], place: Placement) -> dict[str, Any]:
    """Of the whole model. Collective."""
    asked = ds.asked_stage(config)
    own = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    parts = place.grid.pipe.gather((own, describe_groups(groups)))
    sizes = [size for sizes, _ in parts for size in sizes]
    return {
        "zero_stage": stage,
        "zero_stage_asked": asked,
        "precision": config.train.precision,
        "optimizer": config.optim.name,
        "parameters": sum(size for size, _ in sizes),
        "trainable_parameters": sum(size for size, trained in sizes if trained),
        "groups": joined([groups for _, groups in parts]),
        "notes": [ds.stage_note(config)] if asked != stage else [],
    }


def _announce(facts: dict[str, Any]) -> None:
    """What was built, and which parameters decay."""
    for note in facts["notes"]:
        log.warning("%s", note)
    log.info(
        "ZeRO-%d in %s with %s: %s parameters, %s of them trained",
        facts["zero_stage"],
        facts["precision"],
        facts["optimizer"],
        f"{facts['parameters']:,}",
        f"{facts['trainable_parameters']:,}",
    )
    for group in facts["groups"]:
        kinds = ", ".join(group["kinds"])
        line = "%s: weight decay %g on %d tensors, %s parameters (%s)"
        log.info(line, group["name"], group["weight_decay"], group["tensors"], f"{group['parameters']:,}", kinds)
