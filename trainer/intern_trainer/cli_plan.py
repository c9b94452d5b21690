"""`intern-trainer plan`: what a recipe takes, before it is launched."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from intern_trainer.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from intern_trainer.config.schema import Config
    from intern_trainer.plan import Cluster, Plan

EPILOG = """\
examples:
  intern-trainer plan
  intern-trainer plan --config configs/stage1/10b.yaml --ds_config configs/ds/zero3.json --gpus 128 --gpu H100
  intern-trainer plan --config configs/stage1/b15.yaml --gpus 8 --json train.micro_batch=64

The model runs once, forward and backward, on tensors without values; nothing is launched and no GPU is needed.
docs/plan.md has the formulae and how far they were checked.
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", type=Path, metavar="FILE", help="recipe; default: configs/stage1/debug.yaml")
    verb.add_argument("--ds_config", type=Path, metavar="FILE", help="DeepSpeed's own JSON; default: ZeRO stage 0")
    verb.add_argument("--gpus", type=int, default=1, metavar="N", help="devices, one a rank (default 1)")
    verb.add_argument("--gpu", default="H100", metavar="NAME", help="H100, H200, A100, L40S, B200 or cpu")
    verb.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default 8")
    verb.add_argument("--recompute", choices=("none", "selective", "full"), help="default: parallel.recompute")
    verb.add_argument("--samples", type=float, metavar="N", help="such as 13e9; default: those of the recipe")
    verb.add_argument(
        "--mtbf", type=float, metavar="HOURS", help="mean time between failures of one device; default 50000"
    )
    verb.add_argument("--disk", type=float, metavar="GB/S", help="of a checkpoint, from one node; default 2")
    verb.add_argument("--host", type=float, metavar="GB", help="memory of a node itself; default 2000")
    verb.add_argument("--save-seconds", type=float, metavar="S", help="that a save takes, if it was measured")
    verb.add_argument("--efficiency", type=float, metavar="X", help="of the roofline's speed; default 0.75")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.add_argument("--picture", type=Path, metavar="FILE", help="draw the memory of a rank as SVG")
    verb.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides, see above")


def run(chosen: argparse.Namespace) -> int:
    from intern_trainer.config.load import load_config

    config = load_config(chosen.config, chosen.settings, chosen.ds_config)
    errors = _wrong(chosen)
    if errors:
        raise ConfigErrors(errors)
    from rich.console import Console

    from intern_trainer.plan import Cluster, find_device
    from intern_trainer.plan.picture import memory_bars
    from intern_trainer.plan.show import as_json, show

    assumed = {
        "mtbf_hours": chosen.mtbf,
        "disk": chosen.disk and chosen.disk * 1e9,
        "host": chosen.host and chosen.host * 1e9,
        "efficiency": chosen.efficiency,
    }
    given = {name: value for name, value in assumed.items() if value is not None}
    cluster = Cluster(find_device(chosen.gpu, chosen.gpus), chosen.gpus, chosen.gpus_per_node, **given)
    plan = plan_recipe(config, cluster, chosen.recompute, chosen.samples, chosen.save_seconds)
    if chosen.picture:
        chosen.picture.write_text(memory_bars(plan), encoding="utf-8")
    if chosen.json:
        print(json.dumps(as_json(plan), indent=1))
    else:
        show(plan, Console(width=120))
    return 0


def plan_recipe(
    config: Config,
    cluster: Cluster,
    recompute: str | None = None,
    samples: float | None = None,
    save_seconds: float | None = None,
) -> Plan:
    """`plan` of the task that the configuration names, once all rules for so many ranks hold.

    Args:
        recompute: in place of the recipe's.

    Raises:
        ConfigErrors: which do not.
    """
    from intern_trainer.config import ds
    from intern_trainer.config.checks import check_world
    from intern_trainer.config.pipeline import data_ranks
    from intern_trainer.plan import plan
    from intern_trainer.planned import planned_task

    ranks = data_ranks(config, cluster.devices)
    errors = [*check_world(config, cluster.devices), *ds.agree(config.ds, config, ranks)]
    if errors:
        raise ConfigErrors(errors)
    whole, task = planned_task(config, cluster.devices)
    recompute = recompute or config.parallel.recompute
    return plan(whole, task, cluster, recompute, samples, save_seconds)


def _wrong(chosen: argparse.Namespace) -> list[ConfigError]:
    positive = ("gpus", "gpus_per_node", "samples", "mtbf", "disk", "host", "save_seconds", "efficiency")
    wrong = [
        ConfigError(f"--{name.replace('_', '-')} {getattr(chosen, name):g}", "it is a positive number", "give another")
        for name in positive
        if getattr(chosen, name) is not None and getattr(chosen, name) <= 0
    ]
    if chosen.picture and not os.access(chosen.picture.parent, os.W_OK):
        wrong.append(
            ConfigError(f"--picture {chosen.picture}", "its folder must be there, and writable", "another place")
        )
    return wrong
