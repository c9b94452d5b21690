"""What the loop calls at its moments."""

from __future__ import annotations

from collections.abc import Sequence

from intern_trainer.state import State


class Callback:
    """Something optional that watches a run. Every method runs on every rank, at the same step."""

    def on_start(self, state: State) -> None:
        """Before the first step of this process (`state.step` is where it goes on)."""

    def on_step(self, state: State) -> None:
        """After each optimizer step."""

    def on_evaluate(self, state: State) -> None:
        """After an evaluation: `state.evaluation` is new."""

    def on_checkpoint(self, state: State) -> None:
        """After a checkpoint was saved: `state.checkpoint` is new."""

    def on_stop(self, state: State) -> None:
        """After the last step of this process, whatever ended it; also when it failed."""


class Callbacks(Callback):
    """Several as one, in order. A callback that evaluates or saves writes that into the state; all are then told."""

    def __init__(self, members: Sequence[Callback]) -> None:
        self.members = list(members)

    def on_start(self, state: State) -> None:
        for member in self.members:
            member.on_start(state)

    def on_step(self, state: State) -> None:
        for member in self.members:
            evaluated, checkpoint = state.evaluated_step, state.checkpoint
            member.on_step(state)
            if state.evaluated_step != evaluated:
                self.on_evaluate(state)
            if state.checkpoint != checkpoint:
                self.on_checkpoint(state)

    def on_evaluate(self, state: State) -> None:
        for member in self.members:
            member.on_evaluate(state)

    def on_checkpoint(self, state: State) -> None:
        for member in self.members:
            member.on_checkpoint(state)

    def on_stop(self, state: State) -> None:
        for member in self.members:
            member.on_stop(state)
