"""Steps that must not count: named, left out, and too many of them end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intern_trainer import checkpoint
from intern_trainer.batch import Batch
from intern_trainer.errors import TrainingError
from intern_trainer.guard import culprit
from intern_trainer.guard.spikes import followed, is_spike
from intern_trainer.state import Rollback, State

if TYPE_CHECKING:
    from intern_trainer.engine import Engine
    from intern_trainer.engine.engine import StepResult
    from intern_trainer.lockstep import Agreement
    from intern_trainer.tasks import Task

log = logging.getLogger(__name__)


class StepGuard:
    """Judges each step, on all ranks alike: `remember` before it, then `refuses_loss`, `refuses_gradients`."""

    def __init__(self, task: Task, engine: Engine, state: State) -> None:
        self._task, self._engine, self._state = task, engine, state
        self._settings = state.config.guard
        self._buffers: list[Tensor] | None = None

    def remember(self) -> None:
        """What a step changes before it is judged."""
        if self._settings.bad_steps or self._settings.spike:
            self._buffers = [buffer.detach().clone() for buffer in self._engine.module.buffers()]

    def refuses_loss(self, agreement: Agreement, micro_batches: list[Batch]) -> bool:
        """Whether the step ends here, without an update. Collective.

        Raises:
            TrainingError: the loss is not finite, once too often.
        """
        if agreement.bad_loss:
            self._engine.discard()
            self._leave_out(agreement.bad_loss, lambda: culprit.in_forward(*self._again(micro_batches)))
            return True
        loss, spike = agreement.metrics["loss"], self._settings.spike
        if spike is None:
            return False
        if self._state.step + 1 < self._state.total_steps and is_spike(
            loss, self._state.loss_statistics, spike.deviations
        ):
            self._engine.discard()
            self._go_back(loss, spike.back)
            return True
        self._state.loss_statistics = followed(loss, self._state.loss_statistics)
        return False

    def refuses_gradients(self, result: StepResult, micro_batches: list[Batch]) -> bool:
        """Whether there was no update. Collective.

        Raises:
            TrainingError: the gradients are not finite, once too often.
        """
        if result.applied or self._state.config.train.precision == "fp16":  # whose scaled gradients may overflow
            self._state.bad_in_a_row = 0
            return False
        task, engine, micro_batches, ranks = self._again(micro_batches)
        together = self._state.config.train.cached_micro_batches or 1
        self._leave_out(
            f"the gradient norm of step {self._state.step + 1} is {result.grad_norm}",
            lambda: culprit.in_backward(task, engine, micro_batches, together, ranks),
        )
        return True

    def _again(self, micro_batches: list[Batch]) -> tuple:
        return self._task, self._engine, micro_batches, self._state.ranks

    def _leave_out(self, found: str, look: Callable[[], str]) -> None:
        state, allowed = self._state, self._settings.bad_steps
        state.bad_in_a_row += 1
        state.bad_steps += 1
        self._put_back()
        first = look()
        self._put_back()
        if state.bad_in_a_row > allowed:
            row = f"; bad steps in a row: {state.bad_in_a_row}" if allowed else ""
            raise TrainingError(
                f"{found}; {first}{row}",
                "a step that is not finite is neither applied nor saved"
                + (f", and no more than guard.bad_steps={allowed} in a row are left out" if allowed else ""),
                "look at the samples and the module; a smaller optim.lr, a longer optim.schedule.warmup_steps, "
                "or train.precision=bf16 or fp32 may help; guard.bad_steps=3 leaves out up to 3 in a row. The same "
                f"command goes on from {state.checkpoint or 'the beginning'}",
            )
        log.warning(
            "step %d is left out: %s; %s. %d in a row, %d in all", state.step + 1, found, first, state.bad_in_a_row,
            state.bad_steps,
        )  # fmt: skip

    def _put_back(self) -> None:
        if self._buffers is not None:
            with torch.no_grad():
                for buffer, kept in zip(self._engine.module.buffers(), self._buffers, strict=True):
                    buffer.copy_(kept)

    def _go_back(self, loss: float, back: int) -> None:
        state, statistics = self._state, self._state.loss_statistics
        first = max(0, state.step - back)
        path = checkpoint.newest_good(state.run_dir, state.ranks, at_most=first)
        told = f"the loss of step {state.step + 1} is {loss:.4g}, the running mean {statistics['mean']:.4g}"
        if path is None:
            self._put_back()
            state.bad_steps += 1
            log.warning("%s: the step is left out. There is no checkpoint at or before step %d", told, first)
            return
        state.rollback = Rollback(path, sorted({*state.left_out, *range(first, state.step + 1)}))
        log.warning("%s: back to %s; steps %d to %d are left out", told, path, first + 1, state.step + 1)
