"""Says once, after the first step, what the plan expected of this process's memory and what it has taken."""

from __future__ import annotations

import logging

from intern_trainer.callbacks.base import Callback
from intern_trainer.config.phases import Phases
from intern_trainer.engine import Engine
from intern_trainer.observe.memory import Peak, show_bytes
from intern_trainer.observe.storages import storages
from intern_trainer.planned import Expected
from intern_trainer.state import State

log = logging.getLogger(__name__)


class FirstStep(Callback):
    """On rank 0, in a pipeline of its stage. The state is found by walking the engine and its optimizer between two
    steps; gradients are among it where they stay from step to step (ZeRO-3).

    Args:
        peak: begun before the model was made.
    """

    def __init__(self, engine: Engine, expected: Expected, peak: Peak) -> None:
        self._engine, self._expected, self._peak, self._said = engine, expected, peak, False

    def on_step(self, state: State) -> None:
        if self._said or not state.ranks.is_main:
            return
        self._said = True
        side = Phases(state.config).at(state.step - 1).image_size
        planned = self._expected.peak.get(side)
        log.info(
            "memory of rank 0 after the first step: %s of training state by the plan, %s found; peak %s %s (plan: %s)",
            show_bytes(self._expected.state), show_bytes(sum(storages(self._engine).values())),
            show_bytes(self._peak.bytes()), self._peak.of,
            show_bytes(planned) if planned is not None else "with log.plan=full",
        )  # fmt: skip
