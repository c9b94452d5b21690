"""Evaluates every `evaluate.every` steps and after the last."""

from __future__ import annotations

from collections.abc import Callable

from intern_trainer.callbacks.base import Callback
from intern_trainer.state import State


class Evaluation(Callback):
    """Not when the run is asked to stop: whoever asks may not wait for long.

    Args:
        evaluate: runs the validation benchmark (all ranks together) and gives the same results on every rank.
    """

    def __init__(self, evaluate: Callable[[State], dict[str, float]]) -> None:
        self.evaluate = evaluate

    def on_step(self, state: State) -> None:
        every = state.config.evaluate.every
        due = (every and state.step % every == 0) or state.step == state.total_steps
        if due and not state.stop_reason:
            state.evaluation = self.evaluate(state)
            state.evaluated_step = state.step
