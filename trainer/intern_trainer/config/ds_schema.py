"""What may stand in a ds_config: DeepSpeed 0.19.8's keys (`ds_keys.json`, compared with the installed DeepSpeed by a
test), less those refused here.

DeepSpeed takes most unknown keys in silence; a misspelt `zero_optimisation` trains at stage 0. Here every key is
known, or an error.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intern_trainer.errors import ConfigError

KNOWN: dict[str, Any] = json.loads((Path(__file__).parent / "ds_keys.json").read_text(encoding="utf-8"))

_ELSEWHERE = "this trainer does it another way, so the block would have no effect"
_REMOVED = "DeepSpeed 0.19 has removed it"
_MASTERS = "checkpoints, the average and bit-exact resumes stand on fp32 master weights"
_PARALLEL = "ranks are data-parallel here"

REFUSED_KEYS: dict[str, tuple[str, str]] = {
    "pipeline": (
        "DeepSpeed's pipeline engine is not used, the block would have no effect",
        "remove it, and set parallel.pipeline",
    ),
    "hybrid_engine": ("it is for generation inside of training", "remove it"),
    "tensor_parallel": (_PARALLEL, "remove it"),
    "expert_parallel": (_PARALLEL, "remove it"),
    "sequence_parallel_size": (_PARALLEL, "remove it"),
    "use_data_before_expert_parallelism": (_PARALLEL, "remove it"),
    "torch_autocast": ("precision is train.precision", "remove it, and set train.precision=bf16"),
    "activation_checkpointing": (_ELSEWHERE, "remove it"),
    "checkpoint": (
        "checkpoints are our own and load into any ZeRO stage and world size",
        "remove it; see checkpoint.* of the recipe",
    ),
    "aio": ("it serves NVMe offload, which is not supported", "remove it"),
    "compile": ("DeepCompile is not used, the block would have no effect", "remove it"),
    "autotuning": (_ELSEWHERE, "remove it"),
    "data_efficiency": ("data and their order are ours", "remove it; see data.* of the recipe"),
    "dataloader_drop_last": ("data and their order are ours", "remove it; see data.* of the recipe"),
    "tensorboard": ("TensorBoard is always written to RUN/tensorboard", "remove it"),
    "wandb": ("trackers are set in the recipe", "remove it, and set log.wandb={project: NAME}"),
    "csv_monitor": ("metrics are always written to RUN/metrics.jsonl", "remove it"),
    "comet": ("trackers are set in the recipe", "remove it, and set log.wandb={project: NAME}"),
    "weight_quantization": ("it is for inference", "remove it"),
    "datastates_ckpt": ("checkpoints are our own", "remove it"),
    "nebula": (_REMOVED, "remove it"),
    "compression_training": (_REMOVED, "remove it"),
    "quantize_training": (_REMOVED, "remove it"),
    "sparse_gradients": (_REMOVED, "remove it"),
    "eigenvalue": (_REMOVED, "remove it"),
    "sparse_attention": (_REMOVED, "remove it"),
    "graph_harvesting": (_REMOVED, "remove it"),
    "curriculum_learning": (_REMOVED, "remove it"),
    "progressive_layer_drop": (_REMOVED, "remove it"),
    "bfloat16": ("it is the old name of bf16", 'call it "bf16", or remove it and set train.precision=bf16'),
    "amp": (_REMOVED, "remove it, and set train.precision=bf16"),
    "elasticity": (_REMOVED, "remove it; a run resumes on any number of ranks that divides the global batch"),
    "zero_optimization.mics_shard_size": (
        _REMOVED + " (MiCS)",
        'shard within a node by "zero_hpz_partition_size": GPUS_PER_NODE at stage 3; or give each rank a part of the '
        "model by parallel.pipeline with ZeRO-1",
    ),
    "zero_optimization.mics_hierarchical_params_gather": (
        _REMOVED + " (MiCS)",
        'gather within a node by "zero_hpz_partition_size": GPUS_PER_NODE at stage 3; or gather nothing: '
        "parallel.pipeline with ZeRO-1",
    ),
    "zero_optimization.zeropp_loco_param": (_REMOVED, "remove it"),
    "zero_optimization.cpu_offload": ("it is deprecated", 'use "offload_optimizer": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_param": ("it is deprecated", 'use "offload_param": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_use_pin_memory": (
        "it is deprecated",
        'use "pin_memory" inside of offload_optimizer or offload_param',
    ),
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": (
        _ELSEWHERE,
        "remove it; `intern-trainer export` writes whole weights",
    ),
    "zero_optimization.zenflow": ("its optimizer keeps state where our checkpoints do not see it", "remove it"),
    "zero_optimization.zero_quantized_nontrainable_weights": (
        "frozen weights are saved and evaluated as they are",
        "remove it",
    ),
    "zero_optimization.offload_optimizer.super_offload": (
        "its optimizer keeps state where our checkpoints do not see it",
        "remove it",
    ),
    "data_types.buffer_dtype": ("running statistics stay in fp32", "remove it"),
}
"""Keys that DeepSpeed knows, or knew, and that a run here cannot have: the rule, and what to do."""

REFUSED_VALUES: dict[str, tuple[Any, str, str]] = {
    "zero_optimization.offload_optimizer.device": (
        "nvme",
        "state on NVMe is not in our checkpoints",
        '"device": "cpu"',
    ),
    "zero_optimization.offload_param.device": ("nvme", "weights on NVMe are not in our checkpoints", '"device": "cpu"'),
    "zero_optimization.compute_grad_norm": (False, "each step's gradient norm is checked to be finite", "remove it"),
    "zero_optimization.elastic_checkpoint": (True, "our checkpoints load on any number of ranks anyway", "remove it"),
    "zero_optimization.legacy_stage1": (True, "DeepSpeed has removed it", "remove it"),
    "managed_gradient_accumulation": (
        False,
        "accumulation follows from train.global_batch and train.micro_batch",
        "remove it",
    ),
    "gradient_allreduce_op": ("sum", "a loss is a mean over ranks", "remove it"),
    "bf16.bf16_master_weights_and_grads": (True, _MASTERS, "remove it"),
    "bf16.bf16_optimizer_states": (True, _MASTERS, "remove it"),
    "fp16.fp16_master_weights_and_grads": (True, _MASTERS, "remove it"),
    "bf16.check_grad_overflow": (False, "no update may be made with gradients that are not finite", "remove it"),
    "bf16.immediate_grad_update": (False, "it belongs to an optimizer of DeepSpeed's that is not used", "remove it"),
}

AUTO = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "fp16.enabled",
    "bf16.enabled",
}
"""Where "auto" is taken to mean: as our configuration says."""

_PYTHON: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
}
_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "list": "a list",
    "dict": "an object",
}


def check(ds: dict[str, Any]) -> list[ConfigError]:
    """Unknown, refused and mistyped keys at every level, and combinations that DeepSpeed cannot run."""
    errors = list(_walk(ds, KNOWN, ""))
    return errors or list(_combinations(ds))


def _walk(tree: dict[str, Any], table: dict[str, Any], prefix: str) -> Iterator[ConfigError]:
    for key, value in tree.items():
        path = prefix + key
        if path in REFUSED_KEYS:
            rule, fix = REFUSED_KEYS[path]
            yield ConfigError(f"ds_config key {path} is not supported", rule, fix)
        elif key not in table:
            yield _unknown(key, table, prefix)
        elif value == "auto":
            if path not in AUTO:
                yield ConfigError(
                    f'ds_config {path} is "auto"',
                    "only what the recipe also sets can be left to it",
                    f"give {path} a value, or remove it",
                )
        elif isinstance(table[key], dict):
            yield from _walk_section(path, value, table[key])
        else:
            yield from _check_value(path, value, table[key])


def _walk_section(path: str, value: Any, table: dict[str, Any]) -> Iterator[ConfigError]:
    if isinstance(value, dict):
        yield from _walk(value, table, f"{path}.")
    elif not (value is None and path.startswith("zero_optimization.offload")):
        fix = (
            '"zero_optimization": {"stage": 1}'
            if path == "zero_optimization"
            else f"keys of {path}: {', '.join(sorted(table))}"
        )
        yield ConfigError(f"ds_config {path} is {json.dumps(value)}", "it is an object", fix)


def _check_value(path: str, value: Any, leaf: str | list[str]) -> Iterator[ConfigError]:
    if path in REFUSED_VALUES and value == REFUSED_VALUES[path][0]:
        bad, rule, fix = REFUSED_VALUES[path]
        yield ConfigError(f"ds_config {path} is {json.dumps(bad)}", rule, fix)
    elif not _fits(value, leaf):
        near = difflib.get_close_matches(str(value), leaf, 1, 0.5) if isinstance(leaf, list) else []
        fix = f"did you mean {json.dumps(near[0])}?" if near else f"change {path}"
        yield ConfigError(f"ds_config {path} is {json.dumps(value)}", f"it must be {_describe(leaf)}", fix)


def _split(leaf: str) -> tuple[str, str, bool]:
    """`int>=0?` is kind `int`, bound `>=0`, and null allowed."""
    kind = leaf.rstrip("?").split(">")[0]
    return kind, leaf.rstrip("?")[len(kind) :], leaf.endswith("?")


def _fits(value: Any, leaf: str | list[str]) -> bool:
    if isinstance(leaf, list):
        return value in leaf
    kind, bound, optional = _split(leaf)
    if kind == "any" or (value is None and optional):
        return True
    if kind == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)  # bucket sizes are written as 5e8
    if not isinstance(value, _PYTHON[kind]) or (isinstance(value, bool) and kind != "bool"):
        return False
    if not bound:
        return True
    number, limit = float(value), float(bound.strip(">="))  # type: ignore[arg-type]  # a number, by the line above
    return number > limit or (bound.startswith(">=") and number == limit)


def _describe(leaf: str | list[str]) -> str:
    if isinstance(leaf, list):
        return f"one of {', '.join(leaf)}"
    kind, bound, _ = _split(leaf)
    return _IN_WORDS[kind] + (f" {bound[:-1]} {bound[-1]}" if bound else "")


def _unknown(key: str, table: dict[str, Any], prefix: str) -> ConfigError:
    near = [prefix + name for name in difflib.get_close_matches(key, table, 1, 0.6)]
    near += [path for path in _all_paths(KNOWN) if path.rsplit(".", 1)[-1] == key]
    near += difflib.get_close_matches(prefix + key, list(_all_paths(KNOWN)), 1, 0.7)
    fix = f"did you mean {near[0]}?" if near else f"keys there: {', '.join(sorted(table))}"
    return ConfigError(
        f"unknown ds_config key {prefix}{key}",
        "DeepSpeed would take no notice of it, or stop; every key must be one that it knows",
        fix,
    )


def _all_paths(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _all_paths(value, f"{prefix}{key}.")


def _combinations(ds: dict[str, Any]) -> Iterator[ConfigError]:
    zero = ds.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage > 3:
        yield ConfigError(
            f"ds_config zero_optimization.stage is {stage}", "ZeRO has the stages 0, 1, 2 and 3", '"stage": 3'
        )
    for key, lowest in (
        ("offload_param", 3),
        ("zero_quantized_weights", 3),
        ("zero_quantized_gradients", 3),
        ("offload_optimizer", 1),
    ):
        given = zero.get(key)
        active = given.get("device", "none") != "none" if isinstance(given, dict) else bool(given)
        if active and stage < lowest:
            yield ConfigError(
                f"ds_config zero_optimization.{key} at stage {stage}",
                f"it works from stage {lowest} on",
                f'"stage": {lowest}, or remove {key}',
            )
    if zero.get("zero_hpz_partition_size", 1) > 1 and stage != 3:
        yield ConfigError(
            f"ds_config zero_optimization.zero_hpz_partition_size at stage {stage}",
            "it divides the weights of stage 3",
            '"stage": 3',
        )
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    if ratio != 1:
        yield ConfigError(
            f"ds_config zero_optimization.offload_optimizer.ratio is {ratio}",
            "a second optimizer would hold the rest, out of sight of our checkpoints",
            '"ratio": 1.0',
        )
    if ds.get("fp16", {}).get("enabled") is True and ds.get("bf16", {}).get("enabled") is True:
        yield ConfigError(
            "ds_config enables both fp16 and bf16", "a run has one precision", "remove both, and set train.precision"
        )
