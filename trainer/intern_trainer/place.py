"""Where a rank stands in a pipeline, and how the model is cut for it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from intern_zoo.chain import links

from intern_trainer.config.schema import Config
from intern_trainer.parallel import Grid, Placement, alone
from intern_trainer.plan.cut import Cut, cut_of
from intern_trainer.plan.hardware import DEVICES, Cluster
from intern_trainer.tasks import Task

log = logging.getLogger(__name__)


def place_model(config: Config, task: Task, grid: Grid) -> tuple[Placement, int]:
    """This rank's placement, and the stage where pictures enter the model. Collective; rank 0 cuts for all, and shows
    the table.

    Raises:
        ConfigError: `parallel.cut` does not fit the model.
    """
    if grid.stages == 1:
        return alone(grid.world), 0

    def cut() -> Cut:
        # weighed for one kind of device, so that every machine makes the same cut
        made = cut_of(config, task, Cluster(DEVICES["H100"], grid.world.world_size, 8), config.parallel.recompute)
        log.info("%s", made.table())
        return made

    parallel, made = config.parallel, grid.world.on_main(cut)
    with torch.device("meta"):
        model: Any = task.build_model()
    towers = [link.tower for link in links(model, made.text)]
    ends = [sum(made.pieces[: i + 1]) for i in range(len(made.pieces))]
    entry = next(piece for piece, end in enumerate(ends) if "image" in towers[:end])
    place = Placement(grid, tuple(made.pieces), parallel.chunks, made.text, parallel.schedule)
    return place, entry % grid.stages
