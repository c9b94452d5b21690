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
    """Also after the last step, and when the run is asked to stop.

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
        due = state.step % state.config.checkpoint.every == 0
        last = bool(state.step == state.total_steps or state.stop_reason)
        if (due or last) and state.step != self.saved_step:
            completed = self.saver.save(self.progress(state), wait=last) or completed
            self.saved_step = state.step
        state.checkpoint = completed or state.checkpoint

    def on_stop(self, state: State) -> None:
        """Completes the save under way, unless this rank failed alone: its peers would not come to agree on it."""
        error = sys.exception()
        try:
            if error is None or isinstance(error, UserError):  # which is raised on all ranks
                state.checkpoint = self.saver.finish() or state.checkpoint
        except UserError as other:
            if error is None:
                raise
            log.warning("%s", other)  # the first error is the one to be told
        finally:
            self.saver.close()
