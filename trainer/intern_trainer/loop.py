"""The training loop. Everything optional is a callback that sees the `State`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Protocol

from intern_trainer.batch import Batch, total
from intern_trainer.callbacks import Callback
from intern_trainer.config.phases import Phases
from intern_trainer.guard.steps import StepGuard
from intern_trainer.lockstep import Feed, agree
from intern_trainer.state import State
from intern_trainer.steps import accumulate

if TYPE_CHECKING:
    from intern_trainer.engine import Engine
    from intern_trainer.tasks import Task


class Data(Protocol):
    """What the loop needs of the data."""

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]: ...


def run_steps(
    task: Task,
    engine: Engine,
    data: Data,
    state: State,
    callbacks: Callback,
    learning_rate: Callable[[int], float],
    stop_requested: Callable[[], str | None] = lambda: None,
) -> None:
    """Train from `state.step` to `state.total_steps`, or to the step boundary after any rank asks to stop, or until
    `state.rollback` says where to go back to: the gradients of the step are then gone, the rest is the caller's.

    Args:
        callbacks: called at the same step on every rank.
        learning_rate: of the step with this number, counted from 0.
        stop_requested: why this rank wants to stop, such as a signal that it got; None: it does not.

    Raises:
        TrainingError: a loss or gradient that is not finite, more often than `guard.bad_steps` allows, on all ranks.
        UserError: what the data raises on any rank, on all ranks.
    """
    feed = Feed(data.batches(state.step, state.left_out), state.ranks.device)
    guard = StepGuard(task, engine, state)
    engine.train()
    callbacks.on_start(state)
    try:
        if state.step < state.total_steps:
            feed.fetch()
            agree(state.ranks, {}, [], None, feed.error)
        boundary = time.perf_counter()
        while state.step < state.total_steps and state.stop_reason is None:
            while state.step in state.left_out:
                state.step += 1
            _step(task, engine, feed, state, learning_rate(state.step), stop_requested, guard)
            if state.rollback is not None:
                break
            state.seconds, boundary = state.seconds + time.perf_counter() - boundary, time.perf_counter()
            callbacks.on_step(state)
    finally:
        callbacks.on_stop(state)


def _step(
    task: Task,
    engine: Engine,
    feed: Feed,
    state: State,
    lr: float,
    stop_requested: Callable[[], str | None],
    guard: StepGuard,
) -> None:
    """One optimizer step; `state` tells of it afterwards."""
    started, ranks = time.perf_counter(), state.ranks
    micro_batches = feed.take()
    engine.accumulate(len(micro_batches), state.step)
    ids = [sample for batch in micro_batches for sample in batch.ids]
    state.stage_seconds = total(batch.seconds for batch in micro_batches)
    guard.remember()
    means = accumulate(task, engine, micro_batches, state.config.train.cached_micro_batches or 1, ranks.device)
    if state.step + 1 < state.total_steps:
        feed.fetch()  # while the device works through the backward pass
    agreement = agree(ranks, means, ids, state.stop_reason or stop_requested(), feed.error)
    counts = not guard.refuses_loss(agreement, micro_batches)
    if counts:
        result = engine.step(lr)
        counts = not guard.refuses_gradients(result, micro_batches)
        if result.applied:  # fp16 leaves out a step whose scaled gradients overflowed
            state.grad_norm = result.grad_norm
    if state.rollback is not None:
        return
    state.samples += Phases(state.config).at(state.step).global_batch
    state.step += 1
    if counts:
        state.metrics = agreement.metrics
    state.stop_reason, state.lr, state.micro_ids = agreement.stop_reason, lr, ids
    state.step_seconds, state.data_seconds = time.perf_counter() - started, feed.seconds
