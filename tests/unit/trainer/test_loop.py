"""The loop with a plain PyTorch engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from intern_trainer.callbacks import Callback, Callbacks
from intern_trainer.errors import DataError, TrainingError
from intern_trainer.loop import run_steps
from intern_trainer.state import State

from tests.unit.trainer.doubles import LineData, LineTask, PlainEngine, make_state


class Watcher(Callback):
    def __init__(self) -> None:
        self.moments: list[tuple[str, int]] = []
        self.losses: list[float] = []

    def on_start(self, state: State) -> None:
        self.moments.append(("start", state.step))

    def on_step(self, state: State) -> None:
        self.moments.append(("step", state.step))
        self.losses.append(state.metrics["loss"])

    def on_evaluate(self, state: State) -> None:
        self.moments.append(("evaluate", state.step))

    def on_checkpoint(self, state: State) -> None:
        self.moments.append(("checkpoint", state.step))

    def on_stop(self, state: State) -> None:
        self.moments.append(("stop", state.step))


def go(state: State, watcher: Callback, data: LineData | None = None, **options: Any) -> PlainEngine:
    data = data or LineData()
    engine = PlainEngine()
    run_steps(LineTask(), engine, data, state, watcher, lambda step: 0.1 / (step + 1), **options)
    return engine


def test_steps_equal_a_plain_loop(tmp_path: Path) -> None:
    watcher, state = Watcher(), make_state(tmp_path, 5)
    engine = go(state, watcher, LineData(accumulation=3))
    reference, losses = PlainEngine(), []
    for step, micro_batches in zip(range(5), LineData(accumulation=3).batches(0), strict=False):
        parts = [(reference(b.tensors["x"]) - b.tensors["y"]).square().mean() for b in micro_batches]
        (sum(parts) / 3).backward()
        reference.step(0.1 / (step + 1))
        losses.append(float(sum(parts).detach() / 3))
    assert watcher.losses == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(engine.module.weight, reference.module.weight, rtol=1e-6)
    assert engine.rates == [0.1 / (step + 1) for step in range(5)]
    assert (state.step, state.samples) == (5, 20)
    assert state.seconds > 0
    assert "largest_error" in state.metrics


def test_moments_come_in_order_and_data_is_read_no_further_than_needed(tmp_path: Path) -> None:
    watcher, data = Watcher(), LineData()
    go(make_state(tmp_path, 2), watcher, data)
    assert watcher.moments == [("start", 0), ("step", 1), ("step", 2), ("stop", 2)]
    assert data.asked == [0, 1]


def test_it_goes_on_from_a_step(tmp_path: Path) -> None:
    state, data = make_state(tmp_path, 5), LineData()
    state.step = 3
    engine = go(state, Watcher(), data)
    assert data.asked == [3, 4]
    assert engine.rates == [0.1 / 4, 0.1 / 5]


def test_a_finished_run_asks_for_no_data(tmp_path: Path) -> None:
    state, data, watcher = make_state(tmp_path, 5), LineData(), Watcher()
    state.step = 5
    go(state, watcher, data)
    assert data.asked == []
    assert watcher.moments == [("start", 5), ("stop", 5)]


def test_a_request_stops_it_at_the_next_step_boundary(tmp_path: Path) -> None:
    watcher, state = Watcher(), make_state(tmp_path, 5)
    go(state, watcher, stop_requested=lambda: "SIGTERM" if watcher.losses else None)
    assert state.stop_reason == "SIGTERM"
    assert state.step == 2
    assert watcher.moments[-1] == ("stop", 2)


def test_a_loss_that_is_not_finite_names_rank_and_samples_and_changes_nothing(tmp_path: Path) -> None:
    def spoil(step: int, micro_batches: list[Any]) -> None:
        if step == 2:
            micro_batches[0].tensors["y"][1] = float("nan")

    watcher, state = Watcher(), make_state(tmp_path, 5)
    with pytest.raises(TrainingError, match=r"loss of rank 0 is nan; its samples: line/2-0-0, line/2-0-1"):
        go(state, watcher, LineData(spoil=spoil))
    assert state.step == 2
    assert watcher.moments[-2:] == [("step", 2), ("stop", 2)]


def test_gradients_that_are_not_finite_stop_it_before_anything_is_saved(tmp_path: Path) -> None:
    class Overflowing(PlainEngine):
        def backward(self, loss: torch.Tensor) -> None:
            super().backward(loss)
            self.module.weight.grad[0, 0] = float("inf")

    watcher = Watcher()
    with pytest.raises(TrainingError, match="gradient norm of step 1 is inf"):
        run_steps(LineTask(), Overflowing(), LineData(), make_state(tmp_path), watcher, lambda _: 0.1)
    assert watcher.moments == [("start", 0), ("stop", 0)]


def test_bad_steps_are_left_out_and_counted_from_anew_after_a_good_one(tmp_path: Path) -> None:
    def spoil(step: int, micro_batches: list[Any]) -> None:
        if step in (1, 2, 4, 5):
            micro_batches[0].tensors["y"][1] = float("inf")

    watcher, state = Watcher(), make_state(tmp_path, 8, guard={"bad_steps": 2})
    engine = go(state, watcher, LineData(spoil=spoil))
    passed_over = make_state(tmp_path, 8)
    passed_over.left_out = [1, 2, 4, 5]
    same = go(passed_over, Watcher())
    assert torch.equal(engine.module.weight, same.module.weight)
    assert (state.step, state.bad_steps, state.bad_in_a_row) == (8, 4, 0)
    assert [step for moment, step in watcher.moments if moment == "step"] == list(range(1, 9))
    assert watcher.losses[1] == watcher.losses[2] == watcher.losses[0]


@pytest.mark.parametrize(
    ("sick", "told"),
    [("y", "first in the input `y`, on rank 0: sample line/2-0-1"), ("weight", "first in the output of the model, on")],
)
def test_where_it_began_is_told(tmp_path: Path, sick: str, told: str) -> None:
    engine = PlainEngine()

    def spoil(step: int, micro_batches: list[Any]) -> None:
        if step == 2 and sick == "y":
            micro_batches[0].tensors["y"][1] = float("nan")

    class Sickens(Callback):
        def on_step(self, state: State) -> None:
            if state.step == 2 and sick == "weight":
                engine.module.weight.data.fill_(float("inf"))

    with pytest.raises(TrainingError, match="the loss of rank 0 is") as caught:
        run_steps(LineTask(), engine, LineData(spoil=spoil), make_state(tmp_path), Sickens(), lambda _: 0.1)
    assert told in str(caught.value)
    assert "goes on from the beginning" in str(caught.value)


def test_steps_left_out_are_passed_over(tmp_path: Path) -> None:
    watcher, state, data = Watcher(), make_state(tmp_path, 6), LineData()
    state.left_out = [0, 2, 3]
    engine = go(state, watcher, data)
    assert data.asked == [1, 4, 5]
    assert engine.rates == [0.1 / 2, 0.1 / 5, 0.1 / 6]
    assert (state.step, state.samples) == (6, 3 * 4)


def test_a_spike_without_a_checkpoint_to_go_back_to_is_left_out(tmp_path: Path) -> None:
    def spoil(step: int, micro_batches: list[Any]) -> None:
        if step == 30:
            micro_batches[0].tensors["y"] += 100

    watcher = Watcher()
    state = make_state(tmp_path, 40, guard={"spike": {"deviations": 8, "back": 2}})
    go(state, watcher, LineData(spoil=spoil))
    assert state.bad_steps == 1
    assert max(watcher.losses) < 100
    assert state.rollback is None
    assert state.step == 40


def test_an_error_of_the_data_comes_out_as_it_is(tmp_path: Path) -> None:
    def spoil(step: int, micro_batches: list[Any]) -> None:
        if step == 1:
            raise DataError("shard 7 is empty")

    with pytest.raises(DataError, match="shard 7 is empty"):
        go(make_state(tmp_path), Watcher(), LineData(spoil=spoil))


def test_callbacks_that_evaluate_or_save_are_told_to_all(tmp_path: Path) -> None:
    class Evaluates(Callback):
        def on_step(self, state: State) -> None:
            if state.step == 2:
                state.evaluation, state.evaluated_step = {"x": 1.0}, 2

    class Saves(Callback):
        def on_step(self, state: State) -> None:
            if state.step == 2:
                state.checkpoint = Path("step-00000002")

    watcher = Watcher()
    go(make_state(tmp_path, 2), Callbacks([watcher, Evaluates(), Saves()]))
    assert watcher.moments[2:] == [("step", 2), ("evaluate", 2), ("checkpoint", 2), ("stop", 2)]
