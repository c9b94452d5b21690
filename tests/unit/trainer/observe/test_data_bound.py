"""What is said when the data keeps the device waiting."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch
from intern_trainer import lockstep
from intern_trainer.batch import Batch
from intern_trainer.callbacks.data_bound import DataBound
from intern_trainer.callbacks.records import Records
from intern_trainer.config.schema import Data
from intern_trainer.lockstep import Feed
from intern_trainer.loop import run_steps
from intern_trainer.observe.data_bound import advice, stage_times, verdict

from tests.unit.trainer.doubles import LineData, LineTask, PlainEngine, make_state

TIMES = {"data_read_ms": 4.0, "data_decode_ms": 31.2, "data_transform_ms": 2.0, "data_collate_ms": 0.3}
RECORD = {"data_wait": 0.384, "step_seconds": 1.0, **TIMES}


def test_the_verdict_names_what_takes_longest() -> None:
    assert verdict(RECORD) == "data-bound: 38 % waiting; decode 31 ms, read 4.0 ms"
    assert verdict({**RECORD, "data_wait": 0.09}) is None
    assert verdict({"data_wait": 0.5}) == "data-bound: 50 % waiting"
    assert list(stage_times(RECORD)) == ["decode", "read", "transform", "collate"]


def test_the_advice_fits_the_stage_to_blame() -> None:
    def said(stage: str, cores: int = 64, **data: object) -> str:
        return advice({**RECORD, f"data_{stage}_ms": 90.0}, Data.model_validate({"workers": 2, **data}), 128, cores)

    # 128 pictures x (4 + 90 + 2 + 0.3) ms in the 0.616 s that the device works
    assert said("decode").startswith("data.workers=21 (now 2), or ")
    assert "smaller pictures in the shards" in said("decode")
    assert said("decode", cores=8).startswith("more cores: 21 workers would keep up, 8 cores are there a rank")
    assert said("transform").endswith("or a lighter data.augment")
    assert "data.cache_dir" in said("read")
    assert "data.workers=41 (now 40)" in said("decode", workers=40)  # that many would do, if the machine kept up


class TimedData(LineData):
    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        for micro_batches in super().batches(step, left_out):
            for batch in micro_batches:
                batch.seconds = {"read": 0.004, "decode": 0.4}
            yield micro_batches


class Kept:
    """A sink."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def start(self, state: object) -> None: ...

    def write(self, step: int, record: dict[str, float]) -> None:
        self.records.append(record)

    def close(self) -> None: ...


def test_a_record_holds_what_a_picture_takes(tmp_path: Path) -> None:
    """Of the samples of its own steps, each once, although they are read a step ahead."""
    state, kept = make_state(tmp_path, 3, log={"every": 2}), Kept()
    run_steps(LineTask(), PlainEngine(), TimedData(accumulation=2), state, Records([kept]), lambda step: 0.1)
    assert [record["step"] for record in kept.records] == [2, 3]
    assert kept.records[1]["data_wait"] == 0  # the last step fetches nothing
    for record in kept.records:  # batches of 4
        assert record["data_decode_ms"] == pytest.approx(100)
        assert record["data_read_ms"] == pytest.approx(1)


def test_it_is_said_once_until_another_stage_is_to_blame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "intern_trainer")
    sink = DataBound()
    sink.start(make_state(tmp_path))
    slow_read = {**RECORD, "data_read_ms": 70.0}
    for record in (RECORD, RECORD, slow_read, {**RECORD, "data_wait": 0.01}, slow_read):
        sink.write(1, record)
    assert [message.split(";")[1].split()[0] for message in caplog.messages] == ["decode", "read", "read"]
    assert "To change: data.workers=" in caplog.messages[0]


def test_a_gpu_waits_only_when_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """A GPU that has 30 ms of work queued when the first event is recorded; fetching takes 50 ms."""

        times = iter([0.030, 0.050])

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(self.times)

        def elapsed_time(self, other: Event) -> float:
            return (other.at - self.at) * 1e3

    monkeypatch.setattr(lockstep.torch.cuda, "Event", Event)
    feed = Feed(iter([[Batch({}, ["a"])]]), torch.device("cuda"))
    assert feed.seconds == 0
    feed.fetch()
    assert feed.seconds == pytest.approx(0.02)
    feed.take()
    assert feed.seconds == 0  # nothing was fetched since: so it is at the last step
