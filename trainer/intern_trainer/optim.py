"""Which parameters decay, and the learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from intern_trainer.config.phases import Phases
from intern_trainer.config.schema import Config


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters in at most two groups, `decay` and `no_decay`, for a torch optimizer.

    No weight decay: parameters of fewer than two dimensions (norms, biases, logit scale) and those that the model's
    `no_weight_decay()` names (such as XCA's temperature and layer scale).

    Returns:
        groups with the keys `name`, `params`, `names`, `weight_decay`; none is empty.
    """
    named: Any = getattr(model, "no_weight_decay", set)
    exempt: set[str] = set(named())
    decay: dict[str, Any] = {"name": "decay", "params": [], "names": [], "weight_decay": config.optim.weight_decay}
    no_decay: dict[str, Any] = {"name": "no_decay", "params": [], "names": [], "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            dimensions = len(
                getattr(parameter, "ds_shape", parameter.shape)
            )  # a parameter that ZeRO-3 has sharded looks empty
            group = no_decay if dimensions < 2 or name in exempt else decay
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in (decay, no_decay) if group["params"]]


def describe_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One JSON-able row a group: its name, weight decay, tensors, parameters and the kinds of names in it."""
    return [
        {
            "name": group["name"],
            "weight_decay": group["weight_decay"],
            "tensors": len(group["params"]),
            "parameters": sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in group["params"]),
            "kinds": sorted({name.rsplit(".", 1)[-1] for name in group["names"]}),
        }
        for group in groups
    ]


def joined(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The descriptions of parts of a model as those of the whole."""
    whole: dict[str, dict[str, Any]] = {}
    for group in (group for part in parts for group in part):
        other = whole.get(group["name"])
        whole[group["name"]] = group if other is None else {
            **group,
            **{key: other[key] + group[key] for key in ("tensors", "parameters")},
            "kinds": sorted({*other["kinds"], *group["kinds"]}),
        }
    return list(whole.values())


def learning_rate(step: int, config: Config) -> float:
    """Learning rate of optimizer step `step` (the first is 0): linear warm-up from `start_lr`, then a half cosine
    down to `min_lr`, or constant.

    It goes by samples seen, so a phase with larger batches has fewer steps at each height of the curve, and the rate
    itself does not depend on the batch.
    """
    optim, phases = config.optim, Phases(config)
    schedule, first = optim.schedule, phases.first_sample(step)
    warmup = schedule.warmup_steps * config.train.global_batch
    if first < warmup:
        warm = min(1.0, (first + phases.at(step).global_batch) / warmup)
        return schedule.start_lr + (optim.lr - schedule.start_lr) * warm
    if schedule.kind == "constant":
        return optim.lr
    share = (first - warmup) / max(1, phases.samples - warmup)
    return schedule.min_lr + (optim.lr - schedule.min_lr) * (1 + math.cos(math.pi * min(1.0, share))) / 2
