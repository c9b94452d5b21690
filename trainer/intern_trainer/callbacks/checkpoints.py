"""Saves every `checkpoint.every` steps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from intern_trainer.callbacks.base import Callback
from intern_trainer.checkpoint import Progress, Saver
from intern_trainer.errors import UserError
from intern_trainer.state import State

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Also after the last step, and when the run is asked to stop. Where a step was left out when a save was due, the
    next one that counts is saved.

    Args:
        saver: writes checkpoints, all ranks together. progress: what a checkpoint says of the state.
    """

    def __init__(self, saver: Saver, progress: Callable[[State], Progress]) -> None:
        self.saver, self.progress = saver, progress
        self.saved_step = -1

    def on_start(self, state: State) -> None:
        self.saved_step = state.step

    def on_step(self, state: State) -> None:
        completed = self.saver.poll()
        every = state.config.checkpoint.every
        due = state.step // every > self.saved_step // every and not state.bad_in_a_row
        last = bool(state.step == state.total_steps or state.stop_reason)
        if (due or last) and state.step != self.saved_step:
            completed = self.saver.save(self.progress(state), wait=last) or completed
            self.saved_step = state.step
        state.checkpoint = completed or state.checkpoint

    def on_stop(self, state: State) -> None:
        """Completes the save under way, unless this rank failed alone: its peers would not come to agree on it. One
        that a rollback leaves behind is dropped: completed, it might take the place of the checkpoint to go back to.
        """
        error = sys.exception()
        try:
            if state.rollback is None and (error is None or isinstance(error, UserError)):  # raised on all ranks
                state.checkpoint = self.saver.finish() or state.checkpoint
        except UserError as other:
            if error is None:
                raise
            log.warning("%s", other)  # the first error is the one to be told
        finally:
            self.saver.close()
