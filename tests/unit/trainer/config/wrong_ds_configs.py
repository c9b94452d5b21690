# ruff: noqa: E501 (messages are compared whole, and stay whole)
"""Wrong ds_configs, and what is said about each: found, rule, fix."""

from __future__ import annotations

from typing import Any

from intern_trainer.config.ds_schema import KNOWN

DROPPED = "DeepSpeed would take no notice of it, or stop; every key must be one that it knows"
REMOVED = "DeepSpeed 0.19 has removed it"
MASTERS = "checkpoints, the average and bit-exact resumes stand on fp32 master weights"

Z = "zero_optimization"
WRONG: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    (
        {"zero_optimisation": {"stage": 2}},
        ("unknown ds_config key zero_optimisation", DROPPED, "did you mean zero_optimization?"),
    ),
    ({Z: {"stge": 2}}, (f"unknown ds_config key {Z}.stge", DROPPED, f"did you mean {Z}.stage?")),
    ({"stage": 3}, ("unknown ds_config key stage", DROPPED, f"did you mean {Z}.stage?")),
    (
        {Z: {"stage": 3, "stage3_prefetch_bucketsize": 1}},
        (
            f"unknown ds_config key {Z}.stage3_prefetch_bucketsize",
            DROPPED,
            f"did you mean {Z}.stage3_prefetch_bucket_size?",
        ),
    ),
    (
        {Z: {"stage": 3, "offload_optimizer": {"devise": "cpu"}}},
        (f"unknown ds_config key {Z}.offload_optimizer.devise", DROPPED, f"did you mean {Z}.offload_optimizer.device?"),
    ),
    (
        {"bfloat": {"enabled": True}},
        ("unknown ds_config key bfloat", DROPPED, "keys there: " + ", ".join(sorted(KNOWN))),
    ),
    ({Z: True}, (f"ds_config {Z} is true", "it is an object", '"zero_optimization": {"stage": 1}')),
    ({Z: {"stage": "2"}}, (f'ds_config {Z}.stage is "2"', "it must be a whole number >= 0", f"change {Z}.stage")),
    ({Z: {"stage": 2.5}}, (f"ds_config {Z}.stage is 2.5", "it must be a whole number >= 0", f"change {Z}.stage")),
    ({Z: {"stage": 4}}, (f"ds_config {Z}.stage is 4", "ZeRO has the stages 0, 1, 2 and 3", '"stage": 3')),
    (
        {Z: {"stage": 2, "overlap_comm": "yes"}},
        (f'ds_config {Z}.overlap_comm is "yes"', "it must be true or false", f"change {Z}.overlap_comm"),
    ),
    (
        {Z: {"stage": 2, "reduce_bucket_size": 0}},
        (f"ds_config {Z}.reduce_bucket_size is 0", "it must be a whole number > 0", f"change {Z}.reduce_bucket_size"),
    ),
    (
        {Z: {"stage": 2, "reduce_bucket_size": "auto"}},
        (
            f'ds_config {Z}.reduce_bucket_size is "auto"',
            "only what the recipe also sets can be left to it",
            f"give {Z}.reduce_bucket_size a value, or remove it",
        ),
    ),
    (
        {Z: {"stage": 3, "offload_param": {"device": "cup"}}},
        (f'ds_config {Z}.offload_param.device is "cup"', "it must be one of none, cpu, nvme", 'did you mean "cpu"?'),
    ),
    (
        {Z: {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
        (
            f'ds_config {Z}.offload_optimizer.device is "nvme"',
            "state on NVMe is not in our checkpoints",
            '"device": "cpu"',
        ),
    ),
    (
        {Z: {"stage": 2, "offload_param": {"device": "cpu"}}},
        (f"ds_config {Z}.offload_param at stage 2", "it works from stage 3 on", '"stage": 3, or remove offload_param'),
    ),
    (
        {Z: {"offload_optimizer": {"device": "cpu"}}},
        (
            f"ds_config {Z}.offload_optimizer at stage 0",
            "it works from stage 1 on",
            '"stage": 1, or remove offload_optimizer',
        ),
    ),
    (
        {Z: {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
        (
            f"ds_config {Z}.offload_optimizer.ratio is 0.5",
            "a second optimizer would hold the rest, out of sight of our checkpoints",
            '"ratio": 1.0',
        ),
    ),
    (
        {Z: {"stage": 3, "mics_shard_size": 8}},
        (
            f"ds_config key {Z}.mics_shard_size is not supported",
            f"{REMOVED} (MiCS)",
            'shard within a node by "zero_hpz_partition_size": GPUS_PER_NODE at stage 3; or give each rank a part of the '
            "model by parallel.pipeline with ZeRO-1",
        ),
    ),
    (
        {Z: {"stage": 2, "zero_hpz_partition_size": 8}},
        (f"ds_config {Z}.zero_hpz_partition_size at stage 2", "it divides the weights of stage 3", '"stage": 3'),
    ),
    (
        {Z: {"stage": 2, "cpu_offload": True}},
        (
            f"ds_config key {Z}.cpu_offload is not supported",
            "it is deprecated",
            'use "offload_optimizer": {"device": "cpu"}',
        ),
    ),
    (
        {Z: {"stage": 2, "compute_grad_norm": False}},
        (f"ds_config {Z}.compute_grad_norm is false", "each step's gradient norm is checked to be finite", "remove it"),
    ),
    (
        {"pipeline": {"stages": 2}},
        (
            "ds_config key pipeline is not supported",
            "DeepSpeed's pipeline engine is not used, the block would have no effect",
            "remove it, and set parallel.pipeline",
        ),
    ),
    (
        {"amp": {"enabled": True}},
        ("ds_config key amp is not supported", REMOVED, "remove it, and set train.precision=bf16"),
    ),
    (
        {"torch_autocast": {"enabled": True}},
        (
            "ds_config key torch_autocast is not supported",
            "precision is train.precision",
            "remove it, and set train.precision=bf16",
        ),
    ),
    (
        {"elasticity": {}},
        (
            "ds_config key elasticity is not supported",
            REMOVED,
            "remove it; a run resumes on any number of ranks that divides the global batch",
        ),
    ),
    ({"bf16": {"bf16_optimizer_states": True}}, ("ds_config bf16.bf16_optimizer_states is true", MASTERS, "remove it")),
    (
        {"fp16": {"enabled": True}, "bf16": {"enabled": True}},
        ("ds_config enables both fp16 and bf16", "a run has one precision", "remove both, and set train.precision"),
    ),
    (
        {"gradient_clipping": -1},
        ("ds_config gradient_clipping is -1", "it must be a number >= 0", "change gradient_clipping"),
    ),
    (
        {"gradient_allreduce_op": "sum"},
        ('ds_config gradient_allreduce_op is "sum"', "a loss is a mean over ranks", "remove it"),
    ),
    (
        {"communication_data_type": "bf61"},
        ('ds_config communication_data_type is "bf61"', "it must be one of fp16, bf16, fp32", 'did you mean "bf16"?'),
    ),
    (
        {"train_batch_size": True},
        ("ds_config train_batch_size is true", "it must be a whole number > 0", "change train_batch_size"),
    ),
    (
        {"optimizer": "AdamW"},
        ('ds_config optimizer is "AdamW"', "it is an object", "keys of optimizer: legacy_fusion, params, type"),
    ),
]

BATCH_RULE = "batch sizes live in the recipe; a ds_config that also sets them must agree"
PRECISION_RULE = "precision lives in the recipe; a ds_config that also sets it must agree"
OPTIMIZER_RULE = "the optimizer lives in the recipe; a ds_config that also sets it must agree"
SCHEDULE_RULE = "the schedule lives in the recipe; a ds_config that also sets it must agree"

DISAGREEING: list[tuple[dict[str, Any], dict[str, Any], tuple[str, str, str]]] = [
    (
        {"train_batch_size": 512},
        {},
        (
            "ds_config train_batch_size is 512, and train.global_batch is 1024 on 4 rank(s)",
            BATCH_RULE,
            "remove train_batch_size from the ds_config, or train.global_batch=512",
        ),
    ),
    (
        {"train_micro_batch_size_per_gpu": 7},
        {"train": {"micro_batch": 64}},
        (
            "ds_config train_micro_batch_size_per_gpu is 7, and train.micro_batch is 64 on 4 rank(s)",
            BATCH_RULE,
            "remove train_micro_batch_size_per_gpu from the ds_config, or train.micro_batch=7",
        ),
    ),
    (
        {"gradient_accumulation_steps": 2},
        {"train": {"micro_batch": 64}},
        (
            "ds_config gradient_accumulation_steps is 2, and train.global_batch / (train.micro_batch x ranks) is 4 on 4 rank(s)",
            BATCH_RULE,
            "remove gradient_accumulation_steps from the ds_config",
        ),
    ),
    (
        {"gradient_clipping": 0.5},
        {},
        (
            "ds_config gradient_clipping is 0.5, and optim.clip_grad_norm is 1.0",
            "clipping lives in the recipe; a ds_config that also sets it must agree",
            "remove gradient_clipping from the ds_config, or optim.clip_grad_norm=0.5",
        ),
    ),
    (
        {"fp16": {"enabled": True}},
        {},
        (
            "ds_config fp16.enabled is true, and train.precision is bf16",
            PRECISION_RULE,
            "remove fp16.enabled from the ds_config, or train.precision=fp16",
        ),
    ),
    (
        {"bf16": {"enabled": False}},
        {},
        (
            "ds_config bf16.enabled is false, and train.precision is bf16",
            PRECISION_RULE,
            "remove bf16.enabled from the ds_config, or train.precision=fp32",
        ),
    ),
    (
        {Z: {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
        {},
        (
            "ds_config data_types.grad_accum_dtype is fp32 at ZeRO-1 in bf16",
            "DeepSpeed takes another optimizer for that, whose state our checkpoints do not know",
            '"stage": 2 (or 3), where fp32 gradients are supported',
        ),
    ),
    (
        {"optimizer": {"type": "Lion"}},
        {},
        (
            "ds_config optimizer.type is Lion, and optim.name is adamw",
            OPTIMIZER_RULE,
            "remove the optimizer from the ds_config",
        ),
    ),
    (
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.01}}},
        {},
        (
            "ds_config optimizer.params.lr is 0.01, and the recipe has 0.001",
            OPTIMIZER_RULE,
            "remove lr from the ds_config, or optim.lr=0.01",
        ),
    ),
    (
        {"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.999]}}},
        {},
        (
            "ds_config optimizer.params.betas is [0.9, 0.999], and the recipe has [0.9, 0.98]",
            OPTIMIZER_RULE,
            "remove betas from the ds_config, or optim.betas=[0.9, 0.999]",
        ),
    ),
    (
        {"optimizer": {"type": "AdamW", "params": {"wieght_decay": 0.1}}},
        {},
        ("unknown ds_config key optimizer.params.wieght_decay", OPTIMIZER_RULE, "did you mean weight_decay?"),
    ),
    (
        {"scheduler": {"type": "OneCycle"}},
        {},
        (
            "ds_config scheduler.type is OneCycle, and optim.schedule.kind is cosine",
            SCHEDULE_RULE,
            "remove the scheduler from the ds_config",
        ),
    ),
    (
        {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10}}},
        {},
        (
            "ds_config scheduler.params.total_num_steps is 10, and the recipe has 1000",
            SCHEDULE_RULE,
            "remove the scheduler from the ds_config",
        ),
    ),
    (
        {Z: {"stage": 3, "zero_hpz_partition_size": 3}},
        {},
        (
            f"ds_config {Z}.zero_hpz_partition_size is 3 on 4 ranks",
            "the groups are equal parts of the ranks, such as the GPUs of one node",
            "a divisor of the number of ranks",
        ),
    ),
    (
        {Z: {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        {"optim": {"name": "ds_fused_adam"}},
        (
            f"ds_config {Z}.offload_optimizer with optim.name=ds_fused_adam",
            "offloaded weights are updated on the CPU",
            "optim.name=ds_cpu_adam (compiles on first use), or adamw",
        ),
    ),
    (
        {},
        {"optim": {"name": "apex_fused_lamb"}},
        (
            "optim.name=apex_fused_lamb at ZeRO-1",
            "LAMB scales the update of each weight tensor by its norm, and ZeRO updates pieces of flattened tensors",
            "ZeRO-0 in fp32, or another optimizer",
        ),
    ),
    (
        {"zero_optimization": {"stage": 3}},
        {"parallel": {"compile": "block"}},
        (
            "parallel.compile is block at ZeRO-3",
            "DeepSpeed gathers each layer's weights in hooks that torch.compile does not enter: blocks fall to pieces",
            "parallel.compile=none, or a ds_config with zero_optimization.stage 2",
        ),
    ),
]
