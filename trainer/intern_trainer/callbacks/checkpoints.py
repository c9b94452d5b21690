"""Saves every `checkpoint.every` steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intern_trainer.callbacks.base import Callback
from intern_trainer.state import State


class Checkpoints(Callback):
    """Also after the last step, and when the run is asked to stop. Where a step was left out when a save was due, the
    next one that counts is saved.

    Args:
        save: writes a checkpoint of the state (all ranks together) and gives its folder.
    """

    def __init__(self, save: Callable[[State], Path]) -> None:
        self.save = save
        self.saved_step = -1

    def on_start(self, state: State) -> None:
        self.saved_step = state.step

    def on_step(self, state: State) -> None:
        every = state.config.checkpoint.every
        due = state.step // every > self.saved_step // every and not state.bad_in_a_row
        if (due or state.step == state.total_steps or state.stop_reason) and state.step != self.saved_step:
            state.checkpoint = self.save(state)
            self.saved_step = state.step
