"""Probes of what a run has saved, on one process or many."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from intern_zoo.two_tower import takes_any_size

from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError
from intern_trainer.evaluate.probes import Protocol, probe
from intern_trainer.evaluate.stored import stored_model
from intern_trainer.observe.log import start_logging
from intern_trainer.observe.phases import phase
from intern_trainer.ranks import init_ranks
from intern_trainer.run_folder import RunFolder
from intern_trainer.threads import set_threads

log = logging.getLogger(__name__)

LEAST_SIDE = 128
"""Scenes are as large as training pictures, and not smaller than this for models that take any size."""


def probe_run(
    folder: RunFolder,
    config: Config,
    task: Literal["segmentation", "detection"],
    sizes: dict[str, int],
    weights: Literal["ema", "raw"] | None = None,
    path: Path | None = None,
) -> dict[str, Any]:
    """Probe a checkpoint of a run, keep the result in RUN/probes.json, show it, and give that entry.

    Args:
        sizes: `seed`, `train`, `test`, `steps` of the `Protocol`.
        weights: None takes the average where the run keeps one.
        path: the checkpoint; None: the newest good one.

    Raises:
        ConfigError: a size that is not positive. CheckpointError: as of `evaluate_run`.
    """
    for key in ("train", "test", "steps"):
        if sizes[key] < 1:
            raise ConfigError(f"--{key} {sizes[key]}", "it is a positive number", f"leave --{key} out")
    set_threads(config)
    ranks = init_ranks()
    start_logging(ranks.rank, ranks.world_size)
    size = config.model.image_size
    protocol = Protocol(max(size, LEAST_SIDE) if takes_any_size(config.model.image) else size, **sizes)
    if min(protocol.train, protocol.test) < ranks.world_size:
        raise ConfigError(
            f"{min(protocol.train, protocol.test)} scenes for {ranks.world_size} ranks",
            "each rank has a scene to fit and one to judge by",
            "more of --train and --test, or fewer ranks",
        )
    stored = stored_model(folder, config, weights, path, ranks)
    with phase(f"probing {task}"):
        results = probe(stored.model.image.trunk, task, protocol, config, ranks)
    entry = {
        "task": task,
        "step": stored.step,
        "weights": stored.weights,
        "protocol": asdict(protocol),
        "results": results,
    }
    if ranks.is_main:
        folder.add_probe(entry)
    log.info(probe_table(entry))
    return entry


def probe_table(entry: dict[str, Any]) -> str:
    """The figures in per cent, one a line."""
    protocol = entry["protocol"]
    head = f"{entry['task']} probe at step {entry['step']}, {entry['weights']} weights"
    figures = [f"  {name:<16}  {value:7.2%}" for name, value in entry["results"].items()]
    scenes = f"  {protocol['train']} scenes to fit, {protocol['test']} to judge"
    return "\n".join([head, *figures, f"{scenes}, {protocol['steps']} steps, seed {protocol['seed']}"])
