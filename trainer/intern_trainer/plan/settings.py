"""What decides how training state is divided: of the configuration and of DeepSpeed's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from intern_trainer.config import ds
from intern_trainer.config.schema import Config

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MOMENTS = {"apex_fused_sgd": 1}
"""fp32 numbers that an optimizer keeps of each parameter, where it is not Adam's and LAMB's two."""
ZERO_DEFAULTS: dict[str, Any] = {
    "reduce_bucket_size": 5e8,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "zero_hpz_partition_size": 1,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
}
"""DeepSpeed 0.19.8's, of the keys that a plan reads; a test compares them."""


@dataclass(frozen=True)
class Settings:
    """How the state is divided. Sizes in parameters, unless they are called bytes.

    Attributes:
        weight, gradient: bytes a parameter that the model computes with, and that gradients are summed in.
        moments: fp32 numbers of the optimizer a parameter. average: whether there is a moving average.
        hpz: ranks among which ZeRO-3 keeps a second set of parts (1: none).
        persistent: parameters up to this size stay whole under ZeRO-3. live: the most that are whole at once besides.
        reuse: distance to its next use within which a parameter stays whole.
        summed_whole: whether each rank adds up the gradients of all micro-batches, whole, before they are reduced once.
    """

    stage: int
    weight: int
    gradient: int
    moments: int
    average: bool
    bucket: int
    two_buckets: bool
    contiguous: bool
    sub_group: int
    hpz: int
    prefetch: int
    persistent: int
    live: int
    reuse: int
    summed_whole: bool
    offload_optimizer: bool
    offload_weights: bool

    @property
    def has_masters(self) -> bool:
        """ZeRO-0 trains the model's own fp32 weights; the others keep fp32 weights beside, in fp32 too."""
        return self.stage > 0


def settings_of(config: Config) -> Settings:
    stage, weight = ds.zero_stage(config), BYTES[config.train.precision]
    unforeseen = {"stage3_prefetch_bucket_size": 0} if config.parallel.pipeline > 1 else {}  # see `ds.effective`
    zero = ZERO_DEFAULTS | unforeseen | config.ds.get("zero_optimization", {})
    summed = config.ds.get("data_types", {}).get("grad_accum_dtype")
    return Settings(
        stage=stage,
        weight=weight,
        gradient=BYTES[summed] if summed else weight,
        moments=MOMENTS.get(config.optim.name, 2),
        average=config.train.ema_decay is not None,
        bucket=int(zero["reduce_bucket_size"]),
        two_buckets=bool(zero.get("overlap_comm")) and stage in (1, 2),
        contiguous=bool(zero["contiguous_gradients"]),
        sub_group=int(zero["sub_group_size"]),
        hpz=int(zero["zero_hpz_partition_size"]),
        prefetch=int(zero["stage3_prefetch_bucket_size"]),
        persistent=int(zero["stage3_param_persistence_threshold"]),
        live=int(zero["stage3_max_live_parameters"]),
        reuse=int(zero["stage3_max_reuse_distance"]),
        summed_whole=config.parallel.pipeline > 1 and stage > 0,
        offload_optimizer=_offloads(zero, "offload_optimizer"),
        offload_weights=_offloads(zero, "offload_param"),
    )


def _offloads(zero: dict[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") != "none"
