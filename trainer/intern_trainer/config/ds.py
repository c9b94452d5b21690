"""DeepSpeed's own file, `--ds_config`: checked by itself, compared with the recipe, and completed into what DeepSpeed
gets.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator
from typing import Any

from intern_trainer.config.checks import BatchPlan, batch_plan, check_batches
from intern_trainer.config.ds_schema import check
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError

__all__ = ["agree", "asked_stage", "check", "effective", "stage_note", "zero_stage"]

_ADAM = {"adamw", "ds_fused_adam", "ds_cpu_adam", "apex_fused_adam"}
_OPTIMIZERS = {"adam": _ADAM, "adamw": _ADAM, "sgd": {"apex_fused_sgd"}}
_IGNORED_OPTIMIZER_PARAMS = {"torch_adam", "bias_correction", "fused", "foreach"}
_OPTIMIZER_RULE = "the optimizer lives in the recipe; a ds_config that also sets it must agree"
_SCHEDULE_RULE = "the schedule lives in the recipe; a ds_config that also sets it must agree"


def asked_stage(config: Config) -> int:
    """The ZeRO stage that the ds_config asks for."""
    return int(config.ds.get("zero_optimization", {}).get("stage", 0))


def zero_stage(config: Config) -> int:
    """The ZeRO stage that runs: half precision at ZeRO-0 runs as ZeRO-1, because DeepSpeed's own half-precision ZeRO-0
    is less exact.
    """
    asked = asked_stage(config)
    return 1 if asked == 0 and config.train.precision != "fp32" else asked


def stage_note(config: Config) -> str:
    """Why the stage that runs is not the one asked for."""
    return (
        f"train.precision={config.train.precision} at ZeRO-0 runs as ZeRO-{zero_stage(config)}: the same arithmetic "
        "with fp32 masters shared out over the ranks; DeepSpeed's half-precision ZeRO-0 is measurably less exact"
    )


def effective(config: Config, world_size: int) -> dict[str, Any]:
    """What DeepSpeed gets: the user's file, with everything that our configuration owns written out.

    Args:
        world_size: data-parallel ranks, those of one stage of a pipeline.

    Raises:
        ConfigError: the world size or the micro-batch does not divide the global batch.
    """
    plan, precision = batch_plan(config, world_size), config.train.precision
    ds = {key: value for key, value in copy.deepcopy(config.ds).items() if key not in ("optimizer", "scheduler")}
    ds["train_batch_size"] = config.train.global_batch
    passes = plan.accumulation if config.parallel.pipeline == 1 else 1  # a pipeline reduces its gradients once a step
    ds["train_micro_batch_size_per_gpu"] = plan.per_rank // passes
    ds["gradient_accumulation_steps"] = passes
    ds["gradient_clipping"] = config.optim.clip_grad_norm  # DeepSpeed clips at 1.0 where a file says nothing
    ds["zero_optimization"] = ds.get("zero_optimization", {}) | {"stage": zero_stage(config)}
    if config.parallel.pipeline > 1 and zero_stage(config) == 3:
        # passes of several micro-batches alternate: what was recorded of one is no forecast for the next
        ds["zero_optimization"] = {"overlap_comm": False, "stage3_prefetch_bucket_size": 0} | ds["zero_optimization"]
    ds["bf16"] = ds.get("bf16", {}) | {"enabled": precision == "bf16", "check_grad_overflow": True}
    ds["fp16"] = ds.get("fp16", {}) | {"enabled": precision == "fp16"}
    ds["zero_force_ds_cpu_optimizer"] = False  # torch's optimizer may update offloaded weights
    ds["zero_allow_untested_optimizer"] = True  # ours are tested here
    ds.setdefault(
        "timers", {"throughput": {"enabled": False}}
    )  # it synchronises the device at every step, and nobody reads it
    return ds


def agree(ds: dict[str, Any], config: Config, world_size: int) -> list[ConfigError]:
    """Where the ds_config says something else than the recipe about what the recipe owns. `world_size`: data-parallel
    ranks, those of one stage of a pipeline."""
    errors = list(_batch(ds, config, world_size))
    errors += _clipping(ds, config)
    errors += _precision(ds, config)
    errors += _optimizer(ds.get("optimizer", {}), config)
    errors += _schedule(ds.get("scheduler", {}), config)
    errors += _zero(ds.get("zero_optimization", {}), config, world_size)
    return errors


def _batch(ds: dict[str, Any], config: Config, world_size: int) -> Iterator[ConfigError]:
    if check_batches(config, world_size):  # there is no plan to compare with; that error is shown by itself
        return
    plan: BatchPlan = batch_plan(config, world_size)
    ours = {
        "train_batch_size": (config.train.global_batch, "train.global_batch"),
        "train_micro_batch_size_per_gpu": (plan.micro, "train.micro_batch"),
        "gradient_accumulation_steps": (plan.accumulation, "train.global_batch / (train.micro_batch x ranks)"),
    }
    for key, (value, name) in ours.items():
        if ds.get(key, "auto") not in ("auto", value):
            yield ConfigError(
                f"ds_config {key} is {ds[key]}, and {name} is {value} on {world_size} rank(s)",
                "batch sizes live in the recipe; a ds_config that also sets them must agree",
                f"remove {key} from the ds_config" + (f", or {name}={ds[key]}" if name.count("train.") == 1 else ""),
            )


def _clipping(ds: dict[str, Any], config: Config) -> Iterator[ConfigError]:
    ours = config.optim.clip_grad_norm
    if ds.get("gradient_clipping", "auto") not in ("auto", ours):
        yield ConfigError(
            f"ds_config gradient_clipping is {ds['gradient_clipping']}, and optim.clip_grad_norm is {ours}",
            "clipping lives in the recipe; a ds_config that also sets it must agree",
            f"remove gradient_clipping from the ds_config, or optim.clip_grad_norm={ds['gradient_clipping']}",
        )


def _precision(ds: dict[str, Any], config: Config) -> Iterator[ConfigError]:
    precision, rule = config.train.precision, "precision lives in the recipe; a ds_config that also sets it must agree"
    for kind in ("bf16", "fp16"):
        enabled = ds.get(kind, {}).get("enabled", "auto")
        if enabled != "auto" and enabled != (precision == kind):
            yield ConfigError(
                f"ds_config {kind}.enabled is {json.dumps(enabled)}, and train.precision is {precision}",
                rule,
                f"remove {kind}.enabled from the ds_config, or train.precision={kind if enabled else 'fp32'}",
            )
    types = ds.get("data_types", {})
    if types.get("param_dtype", precision) != precision:
        yield ConfigError(
            f"ds_config data_types.param_dtype is {types['param_dtype']}, and train.precision is {precision}",
            rule,
            f"remove param_dtype from the ds_config, or train.precision={types['param_dtype']}",
        )
    summed, stage = types.get("grad_accum_dtype", precision), zero_stage(config)
    if stage == 0 and summed != "fp32":
        yield ConfigError(
            f"ds_config data_types.grad_accum_dtype is {summed} at ZeRO-0",
            "ZeRO-0 keeps gradients in fp32",
            "remove grad_accum_dtype",
        )
    if stage == 1 and precision == "bf16" and summed == "fp32":
        yield ConfigError(
            "ds_config data_types.grad_accum_dtype is fp32 at ZeRO-1 in bf16",
            "DeepSpeed takes another optimizer for that, whose state our checkpoints do not know",
            '"stage": 2 (or 3), where fp32 gradients are supported',
        )


def _optimizer(optimizer: dict[str, Any], config: Config) -> Iterator[ConfigError]:
    optim, kind = config.optim, optimizer.get("type")
    if kind is not None and optim.name not in _OPTIMIZERS.get(kind.lower(), set()):
        yield ConfigError(
            f"ds_config optimizer.type is {kind}, and optim.name is {optim.name}",
            _OPTIMIZER_RULE,
            "remove the optimizer from the ds_config",
        )
        return
    ours: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay, "adam_w_mode": True}
    ours |= (
        {"momentum": optim.momentum}
        if optim.name == "apex_fused_sgd"
        else {"betas": list(optim.betas), "eps": optim.eps}
    )
    for key, value in optimizer.get("params", {}).items():
        if key == "max_grad_norm":
            yield ConfigError(
                "ds_config optimizer.params.max_grad_norm",
                "clipping is optim.clip_grad_norm",
                "remove it, and set optim.clip_grad_norm",
            )
        elif key not in ours and key not in _IGNORED_OPTIMIZER_PARAMS:
            near = difflib.get_close_matches(key, ours, 1)
            fix = (
                f"did you mean {near[0]}?"
                if near
                else f"known: {', '.join(sorted({*ours, *_IGNORED_OPTIMIZER_PARAMS}))}"
            )
            yield ConfigError(f"unknown ds_config key optimizer.params.{key}", _OPTIMIZER_RULE, fix)
        elif key in ours and value not in ("auto", ours[key]):
            yield ConfigError(
                f"ds_config optimizer.params.{key} is {json.dumps(value)}, and the recipe has {json.dumps(ours[key])}",
                _OPTIMIZER_RULE,
                f"remove {key} from the ds_config"
                + (f", or optim.{key}={json.dumps(value)}" if key != "adam_w_mode" else "; the decay is decoupled"),
            )


def _schedule(scheduler: dict[str, Any], config: Config) -> Iterator[ConfigError]:
    if not scheduler.get("type"):
        return
    optim, schedule = config.optim, config.optim.schedule
    common: dict[str, Any] = {"warmup_num_steps": schedule.warmup_steps, "warmup_type": "linear"}
    known: dict[str, tuple[str, dict[str, Any]]] = {
        "WarmupCosineLR": (
            "cosine",
            common
            | {
                "total_num_steps": config.train.steps,
                "cos_min_ratio": schedule.min_lr / optim.lr,
                "warmup_min_ratio": 0,
            },
        ),
        "WarmupLR": ("constant", common | {"warmup_max_lr": optim.lr, "warmup_min_lr": 0}),
    }
    kind, ours = known.get(scheduler["type"], ("", {}))
    if kind != schedule.kind:
        yield ConfigError(
            f"ds_config scheduler.type is {scheduler['type']}, and optim.schedule.kind is {schedule.kind}",
            _SCHEDULE_RULE,
            "remove the scheduler from the ds_config",
        )
        return
    for key, value in scheduler.get("params", {}).items():
        expected = ours.get(key)
        if value not in ("auto", expected):
            yield ConfigError(
                f"ds_config scheduler.params.{key} is {json.dumps(value)}, and the recipe has {json.dumps(expected)}",
                _SCHEDULE_RULE,
                "remove the scheduler from the ds_config",
            )


def _zero(zero: dict[str, Any], config: Config, world_size: int) -> Iterator[ConfigError]:
    name, stage = config.optim.name, zero_stage(config)
    if (zero.get("offload_optimizer") or {}).get("device", "none") != "none" and name not in ("adamw", "ds_cpu_adam"):
        yield ConfigError(
            f"ds_config zero_optimization.offload_optimizer with optim.name={name}",
            "offloaded weights are updated on the CPU",
            "optim.name=ds_cpu_adam (compiles on first use), or adamw",
        )
    for key in ("offload_optimizer", "offload_param"):
        if config.parallel.pipeline > 1 and (zero.get(key) or {}).get("device", "none") != "none":
            yield ConfigError(
                f"ds_config zero_optimization.{key} with parallel.pipeline={config.parallel.pipeline}",
                "a pipeline's gradients are reduced once a step, and nobody has seen offload do that right",
                f"remove {key}: a stage's ranks hold its part of the state alone",
            )
    if name == "apex_fused_lamb" and stage > 0:
        yield ConfigError(
            f"optim.name=apex_fused_lamb at ZeRO-{stage}",
            "LAMB scales the update of each weight tensor by its norm, and ZeRO updates pieces of flattened tensors",
            "ZeRO-0 in fp32, or another optimizer",
        )
    if config.parallel.compile != "none" and stage == 3:
        yield ConfigError(
            f"parallel.compile is {config.parallel.compile} at ZeRO-3",
            "DeepSpeed gathers each layer's weights in hooks that torch.compile does not enter: blocks fall to pieces",
            "parallel.compile=none, or a ds_config with zero_optimization.stage 2",
        )
    group = zero.get("zero_hpz_partition_size", 1)
    if group > 1 and world_size % group:
        yield ConfigError(
            f"ds_config zero_optimization.zero_hpz_partition_size is {group} on {world_size} ranks",
            "the groups are equal parts of the ranks, such as the GPUs of one node",
            "a divisor of the number of ranks",
        )
