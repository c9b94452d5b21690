"""A recipe's task as a plan takes it, and what a plan expects of the launch that is under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from intern_zoo.chain import links
from torch import nn

from intern_trainer import parallel
from intern_trainer.config.phases import Phases
from intern_trainer.config.schema import Config
from intern_trainer.observe.phases import phase
from intern_trainer.parallel import Placement
from intern_trainer.parallel.stage import own_pieces
from intern_trainer.plan import states
from intern_trainer.plan.estimate import Estimator
from intern_trainer.plan.hardware import DEVICES, Cluster
from intern_trainer.plan.model import weigh
from intern_trainer.plan.settings import settings_of
from intern_trainer.ranks import Ranks
from intern_trainer.tasks import Task, build_task


class AsTrained:
    """A task whose model is what the engine would take, but for the sums over ranks, and every operation as it is:
    what recompute frees is worked out from them."""

    def __init__(self, task: Task) -> None:
        self._task, self.views = task, task.views

    def build_model(self) -> nn.Module:
        model = self._task.build_model()
        parallel.sync_batch_norm(model, share=False)
        return model


def planned_task(config: Config, devices: int) -> tuple[Config, AsTrained]:
    """The recipe and its task on so many devices. Packed captions have as many tokens as they have: a plan takes them
    as full."""
    text = config.model.text.model_copy(update={"pack": False})
    whole = config.model_copy(update={"model": config.model.model_copy(update={"text": text})})
    return whole, AsTrained(build_task(whole, Ranks(0, devices, 0, torch.device("cpu"))))


@dataclass(frozen=True)
class Expected:
    """Bytes on a rank of one stage. Attributes:
    state: of training state, between two steps. peak: the most of PyTorch's own, by the picture's side; empty where it
        was not worked out.
    """

    state: int
    peak: dict[int, int]


def expect(config: Config, place: Placement, full: bool) -> Expected:
    """What the plan says of this rank's stage.

    Args:
        full: with activations, which takes a pass on fake tensors: 2 to 30 seconds. The state alone takes none.
    """
    grid, settings = place.grid, settings_of(config)
    whole, task = planned_task(config, grid.world.world_size)
    with torch.device("meta"):
        model: Any = task.build_model()
    own = None
    if grid.stages > 1:
        chain = links(model, place.text)
        own = [link for piece in own_pieces(chain, place.cut, grid.stage, grid.stages).values() for link in piece]
    state = sum(states.resident(weigh(model, config, own), settings, grid.data.world_size).values())
    return Expected(state, _peaks(whole, task, place) if full else {})


def _peaks(config: Config, task: AsTrained, place: Placement) -> dict[int, int]:
    grid, settings, parallel_keys = place.grid, settings_of(config), config.parallel
    if grid.stages > 1:
        parallel_keys = parallel_keys.model_copy(update={"cut": list(place.cut), "text": place.text})
    fixed = config.model_copy(update={"parallel": parallel_keys})
    cluster = Cluster(DEVICES["H100"], grid.world.world_size, 8)  # only its context counts here, which is left out
    with phase("planning the memory of a step"):
        estimator = Estimator(fixed, task, parallel_keys.sync_batch_norm and grid.data.world_size > 1)
        peaks = {}
        for span in Phases(config).spans:
            memory = estimator.estimates(span, settings, parallel_keys.recompute, cluster)[grid.stage].memory
            peaks[span.image_size] = memory.peak - memory.context
    return peaks
