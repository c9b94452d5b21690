from __future__ import annotations

import json
from pathlib import Path

import pytest
from intern_trainer.callbacks.checkpoints import Checkpoints
from intern_trainer.callbacks.evaluation import Evaluation
from intern_trainer.callbacks.profile import Profiler
from intern_trainer.callbacks.progress import ProgressLine, progress_text
from intern_trainer.callbacks.records import Records
from intern_trainer.callbacks.sinks import JsonLines, TensorBoard, WeightsAndBiases, read_records, truncate_records
from intern_trainer.checkpoint import Progress
from intern_trainer.config.schema import Profile, Wandb
from intern_trainer.loop import run_steps
from intern_trainer.state import State
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.unit.trainer.doubles import LineData, LineTask, PlainEngine, make_state


def step(state: State, loss: float, seconds: float = 0.5, waiting: float = 0.1) -> State:
    state.step += 1
    state.samples += 4
    state.metrics, state.lr, state.grad_norm = {"loss": loss}, 0.1, 1.5
    state.step_seconds, state.data_seconds = seconds, waiting
    state.seconds += seconds
    return state


def test_a_record_holds_means_over_its_window(tmp_path: Path) -> None:
    state = make_state(tmp_path, 10, log={"every": 2})
    records = Records([JsonLines(tmp_path / "metrics.jsonl")])
    records.on_start(state)
    for seconds in (0.2, 0.6, 1.0, 1.0):
        records.on_step(step(state, 0.1 + 0.2, seconds))
    records.on_stop(state)
    first, second = read_records(tmp_path / "metrics.jsonl")
    assert first["step"] == 2
    assert first["loss"] == 0.1 + 0.2  # to the last bit
    assert first["images_per_second"] == pytest.approx(2 * 4 / 0.8)
    assert first["data_wait"] == pytest.approx(0.2 / 0.8)
    assert second["step_seconds"] == pytest.approx(1.0)
    assert second["seconds"] == pytest.approx(2.8)
    assert second["eta_seconds"] == pytest.approx(2.8 / 4 * 6)
    assert "mfu" not in second


def test_the_eta_of_a_resumed_run_counts_its_earlier_time(tmp_path: Path) -> None:
    state = make_state(tmp_path, 100, log={"every": 1})
    state.step, state.seconds = 49, 49.5
    records = Records([JsonLines(tmp_path / "metrics.jsonl")])
    records.on_start(state)
    records.on_step(step(state, 1.0, 0.5))
    records.on_stop(state)
    assert read_records(tmp_path / "metrics.jsonl")[0]["eta_seconds"] == pytest.approx(50.0)


@pytest.mark.parametrize(("flops", "left"), [({32: 1e6, 64: 4e6}, (2 + 4 * 4) / 2), ({}, (2 + 4) / 2)])
def test_the_eta_knows_that_larger_pictures_take_longer(tmp_path: Path, flops: dict[int, float], left: float) -> None:
    """Two of four steps of small pictures are done in a second; four steps of large ones follow."""
    phases = {"phases": [{"until": 0.5, "image_size": 32}], "steps": 8, "global_batch": 4}
    state = make_state(tmp_path, 8)
    config = state.config.model_dump() | {"log": {"every": 1}, "model": {"image_size": 64}}
    state.config = type(state.config).model_validate(config | {"train": state.config.train.model_dump() | phases})
    state.facts = {"forward_flops": flops} if flops else {}
    records = Records([JsonLines(tmp_path / "metrics.jsonl")])
    records.on_start(state)
    for _ in range(2):
        records.on_step(step(state, 1.0, 0.5))
    records.on_stop(state)
    assert read_records(tmp_path / "metrics.jsonl")[-1]["eta_seconds"] == pytest.approx(left)


def test_the_last_step_is_recorded_although_it_is_not_due(tmp_path: Path) -> None:
    state = make_state(tmp_path, 3, log={"every": 2})
    records = Records([JsonLines(tmp_path / "metrics.jsonl")])
    records.on_start(state)
    for _ in range(3):
        records.on_step(step(state, 1.0))
    records.on_stop(state)
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [2, 3]


def test_mfu_where_the_peak_is_known(tmp_path: Path) -> None:
    state = make_state(tmp_path, 1)
    state.facts = {"forward_flops": {224: 1e6}}
    records = Records([JsonLines(tmp_path / "metrics.jsonl")], peak=1e9)
    records.on_start(state)
    records.on_step(step(state, 1.0, seconds=0.5))
    records.on_stop(state)
    assert read_records(tmp_path / "metrics.jsonl")[0]["mfu"] == pytest.approx(3 * 1e6 * 8 / 1e9)


def test_a_resumed_curve_has_no_doubles_and_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": number, "loss": 1 / number}) for number in range(1, 6)]
    path.write_text("\n".join(lines) + '\n{"step": 6, "lo')
    kept = truncate_records(path, 3)
    assert [record["step"] for record in kept] == [1, 2, 3]
    assert path.read_text() == "\n".join(lines[:3]) + "\n"
    assert truncate_records(tmp_path / "none.jsonl", 3) == []


def test_tensorboard_hides_what_a_resumed_run_makes_again(tmp_path: Path) -> None:
    state = make_state(tmp_path, 10)
    for begin, losses in ((0, (1.0, 2.0, 3.0)), (1, (20.0, 30.0))):
        sink = TensorBoard(tmp_path / "tensorboard")
        state.step = begin
        sink.start(state)
        for number, loss in enumerate(losses, start=begin + 1):
            sink.write(number, {"step": number, "loss": loss})
        sink.write_evaluation(begin + 1, {"zero_shot/top1": 0.5})
        sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 20.0), (3, 30.0)]
    assert "validation/zero_shot/top1" in events.Tags()["scalars"]
    assert "train/step" not in events.Tags()["scalars"]


def test_the_line_says_it_all() -> None:
    record = {
        "step": 20, "loss": 2.34567, "lr": 0.001, "images_per_second": 1412.3, "data_wait": 0.03,
        "memory_bytes": 1.5 * 2**30, "eta_seconds": 123.0, "mfu": 0.412,
    }  # fmt: skip
    assert progress_text(record, 600) == (
        "step  20/600  loss 2.3457  lr 1.0e-03  1,412 images/s  MFU 41%  data 3%  memory 1.5 GiB  ETA 2 min 03 s"
    )


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logging.getLogger("intern_trainer").propagate = True
    state, line = make_state(tmp_path, 10), ProgressLine()
    records = Records([line])
    with caplog.at_level(logging.INFO):
        records.on_start(state)
        for _ in range(10):
            records.on_step(step(state, 1.25))
        records.on_stop(state)
    assert "step 10/10  loss 1.2500" in caplog.text


class AtOnce:
    """Saves of which nothing remains but their steps."""

    poll = staticmethod(lambda: None)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[tuple[int, bool]] = []

    def save(self, progress: Progress, wait: bool) -> Path:
        self.saved.append((progress.step, wait))
        return self.folder / str(progress.step)


def test_checkpoints_are_due_every_so_often_at_the_end_and_when_asked_to_stop(tmp_path: Path) -> None:
    state = make_state(tmp_path, 7, checkpoint={"every": 3})
    saver = AtOnce(tmp_path)
    checkpoints = Checkpoints(saver, lambda state: Progress(state.step))  # type: ignore[arg-type]
    checkpoints.on_start(state)
    for _ in range(7):
        state.step += 1
        state.stop_reason = "SIGTERM" if state.step == 5 else None
        checkpoints.on_step(state)
    assert saver.saved == [(3, False), (5, True), (6, False), (7, True)]
    assert state.checkpoint == tmp_path / "7"


def test_a_step_left_out_is_not_saved_the_next_that_counts_is(tmp_path: Path) -> None:
    state, saver = make_state(tmp_path, 20, checkpoint={"every": 3}), AtOnce(tmp_path)
    checkpoints = Checkpoints(saver, lambda state: Progress(state.step))  # type: ignore[arg-type]
    checkpoints.on_start(state)
    for number, in_a_row in ((1, 0), (2, 0), (3, 1), (4, 2), (5, 0), (6, 0), (11, 0), (12, 0), (20, 1)):
        state.step, state.bad_in_a_row = number, in_a_row
        checkpoints.on_step(state)
    assert [step for step, _ in saver.saved] == [5, 6, 11, 12, 20]


def test_skipped_steps_are_counted_once_there_are_any(tmp_path: Path) -> None:
    state = make_state(tmp_path, 10, log={"every": 1})
    records = Records([JsonLines(tmp_path / "metrics.jsonl")])
    records.on_start(state)
    state.step, state.bad_steps, state.step_seconds = 1, 1, 0.1
    records.on_step(state)  # the very first: there is no loss to tell
    records.on_step(step(state, 1.0))
    state.left_out = [2, 3, 7]
    state.step = 4
    records.on_step(step(state, 1.0))
    records.on_stop(state)
    found = [(record["step"], record["skipped_steps"]) for record in read_records(tmp_path / "metrics.jsonl")]
    assert found == [(2, 1), (5, 3)]


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 5]), (None, [5])])
def test_evaluation_is_due_every_so_often_and_at_the_end(
    tmp_path: Path, every: int | None, expected: list[int]
) -> None:
    state = make_state(tmp_path, 5, evaluate={"every": every})
    asked: list[int] = []
    evaluation = Evaluation(lambda state: asked.append(state.step) or {"retrieval/image_to_text_R@5": 0.5})
    for _ in range(5):
        state.step += 1
        evaluation.on_step(state)
    assert asked == expected
    assert state.evaluated_step == 5


def test_a_profile_of_two_steps(tmp_path: Path) -> None:
    state = make_state(tmp_path, 5)
    profiler = Profiler(Profile(first=2, last=3), tmp_path / "profile")
    run_steps(LineTask(), PlainEngine(), LineData(), state, profiler, lambda _: 0.1)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    forwards = [event for event in trace["traceEvents"] if event.get("name") == "aten::linear"]
    assert len(forwards) == 2
    assert "aten::" in (tmp_path / "profile" / "operators.txt").read_text()


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    calls: list[dict] = []
    logged: list[tuple[dict, int]] = []

    def init(**options: object) -> SimpleNamespace:
        calls.append(options)
        return SimpleNamespace(
            id="abc123", log=lambda values, step: logged.append((values, step)), finish=lambda: logged.append(({}, -1))
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=RuntimeError))
    for _ in range(2):
        sink = WeightsAndBiases(Wandb(project="intern", mode="offline"), tmp_path)
        sink.start(make_state(tmp_path))
        sink.write(3, {"step": 3, "loss": 1.0})
        sink.close()
    assert [call["id"] for call in calls] == [None, "abc123"]
    assert logged[0] == ({"train/loss": 1.0}, 3)


def test_wandb_that_is_not_installed_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from intern_trainer.errors import EnvironmentFault

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EnvironmentFault, match="pip install wandb"):
        WeightsAndBiases(Wandb(project="intern"), tmp_path)
