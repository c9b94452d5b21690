"""The keys that the installed DeepSpeed knows, read from its models: what `config/ds_keys.json` is made of and
compared with.

python -m tests.unit.trainer.config.ds_schema > trainer/intern_trainer/config/ds_keys.json
"""

from __future__ import annotations

import enum
import json
import types
import typing
from typing import Any

TYPES = {int: "int", bool: "bool", float: "float", str: "str", dict: "dict", list: "list"}

# read by DeepSpeed from plain dicts, so that there is no model to read them from
TOP_LEVEL = {
    "train_batch_size": "int>0",
    "train_micro_batch_size_per_gpu": "int>0",
    "gradient_accumulation_steps": "int>0",
    "gradient_clipping": "float>=0",
    "managed_gradient_accumulation": "bool",
    "steps_per_print": "int>0?",
    "wall_clock_breakdown": "bool",
    "memory_breakdown": "bool",
    "dump_state": "bool",
    "disable_python_gc": "bool",
    "disable_allgather": "bool",
    "communication_data_type": ["fp16", "bf16", "fp32"],
    "seq_parallel_communication_data_type": ["fp16", "bf16", "fp32"],
    "prescale_gradients": "bool",
    "gradient_predivide_factor": "float>0",
    "gradient_allreduce_op": ["mean", "sum"],
    "zero_allow_untested_optimizer": "bool",
    "zero_force_ds_cpu_optimizer": "bool",
    "log_level": "str",
    "vocabulary_size": "int>0",
    "optimizer": {"type": "str", "params": "dict", "legacy_fusion": "bool"},
    "scheduler": {"type": "str", "params": "dict"},
    "data_types": {
        "grad_accum_dtype": ["fp16", "bf16", "fp32"],
        "param_dtype": ["fp16", "bf16", "fp32"],
        "buffer_dtype": ["fp16", "bf16", "fp32"],
        "keep_in_fp32_modules": "any",
    },
    "flops_profiler": {
        "enabled": "bool",
        "recompute_fwd_factor": "float>=0",
        "profile_step": "int>0",
        "module_depth": "int",
        "top_modules": "int>0",
        "detailed": "bool",
        "output_file": "str?",
    },
}


def known_keys() -> dict[str, Any]:
    """The nested table: leaf `int`, `float`, `bool`, `str`, `list`, `dict`, `any`, with a bound and `?` where null is
    allowed; a list of choices; or a table.
    """
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        **TOP_LEVEL,
        "zero_optimization": _table(DeepSpeedZeroConfig),
        "bf16": _table(DeepSpeedBF16Config),
        "fp16": _table(DeepSpeedFP16Config),
        "comms_logger": _table(CommsLoggerConfig),
        "timers": {"throughput": _table(DeepSpeedThroughputTimerConfig)},
    }


def _table(model: Any) -> dict[str, Any]:
    found = {}
    for name, field in sorted(model.model_fields.items()):
        for key in filter(None, (name, field.alias)):  # DeepSpeed takes both
            found[key] = _leaf(field.annotation, field.metadata)
    return found


def _leaf(annotation: Any, metadata: Any) -> Any:
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        arguments = typing.get_args(annotation)
        optional = type(None) in arguments
        rest = [argument for argument in arguments if argument is not type(None)]
        annotation = rest[0] if len(rest) == 1 else Any
    origin = typing.get_origin(annotation) or annotation
    if hasattr(origin, "model_fields"):
        return _table(origin)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return "int>=0" if issubclass(origin, int) else [str(member.value) for member in origin]
    bounds = [
        f"{sign}{getattr(m, key):g}" for m in metadata for key, sign in (("gt", ">"), ("ge", ">=")) if hasattr(m, key)
    ]
    return TYPES.get(origin, "any") + "".join(bounds[:1]) + ("?" if optional else "")


if __name__ == "__main__":
    print(json.dumps(known_keys(), indent=1))
