"""The curve of a run: what is measured at every logged step, and the places it is written to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from intern_trainer.batch import total
from intern_trainer.callbacks.base import Callback
from intern_trainer.config.phases import Phases
from intern_trainer.observe.memory import memory_bytes
from intern_trainer.observe.mfu import utilisation
from intern_trainer.state import State


class Sink(Protocol):
    """A place that records go to. Rank 0 only."""

    def start(self, state: State) -> None: ...

    def write(self, step: int, record: dict[str, float]) -> None:
        """One record of training."""

    def write_evaluation(self, step: int, results: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Records(Callback):
    """Every `log.every` steps one record goes to all sinks.

    A record holds `step`, `samples`, `loss` and the task's metrics, `lr`, `grad_norm`, and over the steps since the
    record before: `images_per_second` (all ranks), `step_seconds` (mean), `data_wait` (fraction of the time), and
    `data_decode_ms` and alike, what a picture takes in one loader process of this rank, by stage; `memory_bytes` of
    this rank's device, `mfu` (fraction) where the device's peak is known, `seconds` spent in the loop since the run's
    very start, `eta_seconds` (the steps that are left, weighed by the forward FLOPs of their pictures), and `time`
    (Unix). `skipped_steps`, once there are any: bad ones and those passed over since a spike; `loss` and the like are
    then those of the last step that counted.

    Args:
        peak: FLOP/s of one device, or None where it is not known.
    """

    def __init__(self, sinks: Sequence[Sink], peak: float | None = None) -> None:
        self.sinks, self.peak = list(sinks), peak
        self._stage_seconds: dict[str, float] = {}
        self._own_samples = 0
        self._forget_window()

    def on_start(self, state: State) -> None:
        self._phases = Phases(state.config)
        for sink in self.sinks:
            sink.start(state)

    def on_step(self, state: State) -> None:
        span = self._phases.at(state.step - 1)
        self._steps += 1
        self._samples += span.global_batch
        self._flops += span.global_batch * state.facts.get("forward_flops", {}).get(span.image_size, 0)
        self._step_seconds += state.step_seconds
        self._data_seconds += state.data_seconds
        self._stage_seconds = total([self._stage_seconds, state.stage_seconds])
        self._own_samples += len(state.micro_ids)
        due = state.step % state.config.log.every == 0 or state.step == state.total_steps
        if not due or not state.metrics:
            return
        record = self._record(state)
        for sink in self.sinks:
            sink.write(state.step, record)
        self._forget_window()

    def on_evaluate(self, state: State) -> None:
        for sink in self.sinks:
            sink.write_evaluation(state.step, state.evaluation)

    def on_stop(self, state: State) -> None:
        for sink in self.sinks:
            sink.close()

    def _forget_window(self) -> None:
        self._steps, self._samples, self._flops = 0, 0, 0.0
        self._step_seconds, self._data_seconds = 0.0, 0.0
        self._stage_seconds, self._own_samples = {}, 0

    def _record(self, state: State) -> dict[str, float]:
        per_second = self._samples / self._step_seconds
        record = {
            "step": state.step,
            "samples": state.samples,
            **state.metrics,
            "lr": state.lr,
            "grad_norm": state.grad_norm,
            "images_per_second": per_second,
            "step_seconds": self._step_seconds / self._steps,
            "data_wait": self._data_seconds / self._step_seconds,
            **{f"data_{stage}_ms": 1e3 * seconds / self._own_samples for stage, seconds in self._stage_seconds.items()},
            "memory_bytes": memory_bytes(state.ranks.device),
            "seconds": state.seconds,
            "eta_seconds": state.seconds * (self._work(state, state.total_steps) / self._work(state, state.step) - 1),
            "time": time.time(),
        }
        skipped = state.bad_steps + sum(step < state.step for step in state.left_out)
        if skipped:
            record["skipped_steps"] = skipped
        flops = self._flops / self._samples
        mfu = utilisation(flops, per_second, state.ranks.world_size, self.peak) if flops else None
        return record if mfu is None else {**record, "mfu": mfu}

    def _work(self, state: State, step: int) -> float:
        """Forward FLOPs of the steps before `step`; samples where FLOPs are not known."""
        flops, taken = state.facts.get("forward_flops", {}), self._phases.samples_by_phase(step)
        return sum(n * flops.get(span.image_size, 1) for n, span in zip(taken, self._phases.spans, strict=True))
