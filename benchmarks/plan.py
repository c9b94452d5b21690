"""Our plan's training states against DeepSpeed's and accelerate's own estimators, for the same recipes.

GB (1e9 bytes) on one GPU, of weights, gradients and optimizer alone: neither of the others counts activations. What a
plan adds to them stands beside. No GPU is needed and nothing is launched.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from intern_trainer.cli_plan import plan_recipe
from intern_trainer.config.load import DEFAULT_RECIPE, load_config
from intern_trainer.plan import Cluster, find_device
from intern_trainer.ranks import Ranks
from intern_trainer.tasks import build_task

from benchmarks.results import save

RECIPES = {"debug": 2, "b15": 64, "10b": 128}
"""Recipes of stage 1, and on how many H100 in nodes of eight."""


def main(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="python -m benchmarks plan", description=__doc__).parse_args(arguments)
    rows = [row for recipe, gpus in RECIPES.items() for row in compare(recipe, gpus)]
    for row in rows:
        print(
            "  ".join(f"{name} {value:.3f}" if isinstance(value, float) else str(value) for name, value in row.items())
        )
    print(save("plan", {"GB": rows}))
    return 0


def compare(recipe: str, gpus: int) -> list[dict[str, Any]]:
    """One row for each ZeRO stage that all can say something of."""
    path = DEFAULT_RECIPE.with_name(f"{recipe}.yaml")
    theirs = accelerate_says(path)
    rows = []
    for stage in (2, 3):
        config = load_config(path, ["train.precision=bf16", "train.ema_decay=null"], ds_config(stage))
        plan = plan_recipe(config, Cluster(find_device("H100", gpus), gpus, 8))
        weights, memory = plan.weights, plan.stages[0].estimate.memory
        held = {**memory.resident, "gradients": (memory.resident | memory.backward)["gradients"]}
        states = sum(size for name, size in held.items() if name != "buckets")
        nodes, per_node = plan.cluster.nodes, min(8, gpus)
        if stage == 2:
            _, estimated = estimate_zero2_model_states_mem_needs(weights.total, per_node, nodes, cpu_offload=False)
        else:
            _, estimated, _ = estimate_zero3_model_states_mem_needs(
                weights.total, weights.largest_module, per_node, nodes, cpu_offload=False
            )
        rows.append(
            {
                "recipe": recipe,
                "ZeRO": stage,
                "GPUs": gpus,
                "states by us": states / 1e9,
                "by DeepSpeed": estimated / 1e9,
                "by accelerate": theirs / 1e9,
                "activations, buckets and the rest": (memory.peak - states) / 1e9,
            }
        )
    return rows


def ds_config(stage: int) -> Any:
    """configs/ds/zeroN.json, as a user would give it."""
    return DEFAULT_RECIPE.parents[1] / "ds" / f"zero{stage}.json"


def accelerate_says(path: Any) -> int:
    """`accelerate estimate-memory` knows models of the Hugging Face Hub; these are the functions behind it."""
    task = build_task(load_config(path), Ranks(0, 1, 0, torch.device("cpu")))
    with torch.device("meta"):
        total, _ = calculate_maximum_sizes(task.build_model())
    return max(estimate_training_usage(total, "bfloat16").values())
