"""Saves beside training: what training waits for, what is saved, and what becomes of errors. No sleeps: a write is held
up by an event."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from intern_trainer.callbacks.checkpoints import Checkpoints
from intern_trainer.checkpoint import CheckpointReader, Progress, Saver, load, newest_good, shards, snapshot
from intern_trainer.config.schema import Config
from intern_trainer.errors import EnvironmentFault, TrainingError
from intern_trainer.observe.memory import HostMemory, host_memory
from intern_trainer.ranks import Ranks
from intern_trainer.slices import PARAM, Slice

from tests.unit.trainer.checkpoint.fakes import ALONE, FakeEngine, fresh_state, on_ranks
from tests.unit.trainer.doubles import make_state

ALWAYS = Config.model_validate({"checkpoint": {"background": "always", "keep_last": 1, "keep_best": 0}})


class Disk:
    """Lets no rank write until it is `opened`; then fails on the rank `failing`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int | None = None) -> None:
        self.opened, self.begun, self.failing = threading.Event(), threading.Event(), failing
        self._write = shards.write_slices
        monkeypatch.setattr("intern_trainer.checkpoint.write.write_slices", self.write)

    def write(self, slices: Any, folder: Path, rank: int) -> Any:
        self.begun.set()
        assert self.opened.wait(20)
        if rank == self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(slices, folder, rank)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.opened.set()


def steps_of(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, disk: Disk) -> None:
    engine, progress = FakeEngine(fresh_state()), Progress(10, evaluations=[{"step": 10.0, "top1": 0.5}])
    saver = Saver(engine, tmp_path, ALONE, ALWAYS)
    assert saver.save(progress) is None
    for tensors in engine.state.values():  # the next steps
        for tensor in tensors.values():
            tensor.zero_()
    engine.values["steps"] = 18
    progress.evaluations.append({"step": 11.0, "top1": 0.9})
    drawn = torch.rand(3)
    assert disk.begun.wait(20)
    assert [saver.poll() for _ in range(3)] == [None] * 3
    assert steps_of(tmp_path) == [".tmp-step-00000010"]
    disk.opened.set()
    path = saver.finish()
    assert path == newest_good(tmp_path) == tmp_path / "checkpoints" / "step-00000010"
    reader, state = CheckpointReader(path), fresh_state()
    for kind, tensors in state.items():
        assert all(torch.equal(reader.tensor(kind, name), tensor) for name, tensor in tensors.items()), kind
    assert reader.scalars["steps"] == 17
    assert load(engine, path, ALONE).evaluations == [{"step": 10.0, "top1": 0.5}]
    assert torch.equal(torch.rand(3), drawn)
    saver.close()


def test_polling_completes_a_save_on_all_ranks_at_the_same_step(tmp_path: Path, disk: Disk) -> None:
    def one(ranks: Ranks) -> list[Path | None]:
        saver = Saver(FakeEngine(fresh_state(), ranks.rank, 2), tmp_path, ranks, ALWAYS)
        found = [saver.save(Progress(10)), saver.poll()]
        ranks.barrier()
        disk.opened.set()
        while found[-1] is None:
            found.append(saver.poll())
        saver.close()
        return found

    first, second = on_ranks(2, one)
    assert first == second
    assert first[-1] == newest_good(tmp_path)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_is_raised_on_all_at_the_next_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    disk = Disk(monkeypatch)
    disk.opened.set()

    def one(ranks: Ranks) -> Exception:
        saver = Saver(FakeEngine(fresh_state(), ranks.rank, 2), tmp_path, ranks, ALWAYS)
        saver.save(Progress(10))
        saver.finish()
        disk.failing = failing
        saver.save(Progress(20))
        try:
            while True:
                saver.poll()
        except EnvironmentFault as error:
            assert saver.poll() is None  # there is no save under way any more
            saver.close()
            return error

    errors = on_ranks(2, one)
    assert [type(error) for error in errors] == [EnvironmentFault] * 2
    assert "the disk is full: step-00000020 needs" in str(errors[0])
    assert steps_of(tmp_path) == ["step-00000010"]
    assert newest_good(tmp_path) is not None


def test_a_value_that_is_not_finite_is_found_in_the_background(tmp_path: Path) -> None:
    engine = FakeEngine(fresh_state())
    engine.state["ema"]["text.proj"][0, 0] = torch.nan
    saver = Saver(engine, tmp_path, ALONE, ALWAYS)
    assert saver.save(Progress(10)) is None
    with pytest.raises(TrainingError, match=r"1 value\(s\) of text\.proj \(ema\) are not finite"):
        saver.finish()
    assert steps_of(tmp_path) == []


def test_the_next_save_waits_and_the_old_one_goes_when_the_new_one_is_complete(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(FakeEngine(fresh_state()), tmp_path, ALONE, ALWAYS)
    assert saver.save(Progress(10)) is None
    copied, take = [], saver._snapshot.take
    monkeypatch.setattr(saver._snapshot, "take", lambda *given: (copied.append(newest_good(tmp_path)), take(*given))[1])
    first = tmp_path / "checkpoints" / "step-00000010"
    threading.Thread(target=disk.opened.set).start()
    assert saver.save(Progress(20)) == first
    assert copied == [first]  # complete before its copy made way for the next
    assert first.name in steps_of(tmp_path)
    last = tmp_path / "checkpoints" / "step-00000030"
    assert saver.save(Progress(30), wait=True) == last
    saver.close()
    assert steps_of(tmp_path) == [last.name]


def test_memory_is_taken_once_and_slices_are_cut_at_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 64)
    monkeypatch.setattr(snapshot, "SMALLEST_BYTES", 8)
    copy = snapshot.Snapshot(ALONE.device)
    engine = FakeEngine(fresh_state())
    total = sum(piece.tensor.nbytes for piece in engine.slices())
    first = copy.take(engine.slices(), total)
    again = copy.take(engine.slices(), total)
    assert [piece.tensor.data_ptr() for piece in again] == [piece.tensor.data_ptr() for piece in first]
    for whole in engine.slices():
        parts = [p for p in again if (p.kind, p.name) == (whole.kind, whole.name)]
        assert [p.start for p in parts] == [0, *(p.end for p in parts)][:-1]
        assert torch.equal(torch.cat([p.tensor for p in parts]), whole.tensor)
        assert all(p.tensor.dtype == whole.tensor.dtype and p.shape == whole.shape for p in parts)
    larger = [
        *engine.slices(),
        Slice(PARAM, "more", (999,), 0, torch.arange(999.0)),
    ]  # moments come with the first step
    assert torch.equal(torch.cat([p.tensor for p in copy.take(larger, total) if p.name == "more"]), larger[-1].tensor)


@pytest.mark.parametrize(("free", "words"), [(400, "hold up training"), (9000, "are written in the background")])
def test_auto_looks_at_the_memory_of_every_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, words: str
) -> None:
    """Two ranks on one machine; what they save, 2.2 kB, is counted together."""
    monkeypatch.setattr("intern_trainer.checkpoint.background.host_memory", lambda: HostMemory(10_000, 1000 + free))

    def one(ranks: Ranks) -> Path | None:
        saver = Saver(FakeEngine(fresh_state(), ranks.rank, 2), tmp_path, ranks, Config())
        path = saver.save(Progress(10))
        assert saver.finish() is not None or path is not None
        saver.close()
        return path

    with caplog.at_level(logging.INFO):
        paths = on_ranks(2, one)
    assert (paths[0] is None) == (free == 9000), paths
    assert paths[0] == paths[1]
    assert words in caplog.text
    assert "training waited" in caplog.text


def test_a_control_group_is_a_machine_of_its_own(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert host_memory(tmp_path).total > 1 << 28  # none
    write("proc/self/cgroup", "0::/job/step\n")
    for name, text in {"memory.max": "max\n", "memory.current": "100\n", "memory.stat": "inactive_file 0\n"}.items():
        write(f"sys/fs/cgroup/job/step/{name}", text)
    assert host_memory(tmp_path).total > 1 << 28
    for name, text in {"max": "5000000\n", "current": "1500000\n", "stat": "anon 7\ninactive_file 500000\n"}.items():
        write(f"sys/fs/cgroup/job/memory.{name}", text)
    assert host_memory(tmp_path) == HostMemory(5_000_000, 4_000_000)
    write("proc/self/cgroup", "5:cpu:/x\n4:memory:/job\n")
    for name, text in {
        "limit_in_bytes": "3000000", "usage_in_bytes": "2000000", "stat": "total_inactive_file 100000",
    }.items():  # fmt: skip
        write(f"sys/fs/cgroup/memory/job/memory.{name}", text)
    assert host_memory(tmp_path) == HostMemory(3_000_000, 1_100_000)


@pytest.mark.parametrize("error", [None, TrainingError("diverged"), KeyError("a bug of one rank")])
def test_what_ends_a_run_does_not_lose_the_save_under_way(tmp_path: Path, disk: Disk, error: Exception | None) -> None:
    state = make_state(tmp_path, 100, checkpoint={"every": 2})
    state.step = 1
    checkpoints = Checkpoints(Saver(FakeEngine(fresh_state()), tmp_path, ALONE, ALWAYS), lambda s: Progress(s.step))
    checkpoints.on_start(state)
    state.step = 2
    checkpoints.on_step(state)
    assert disk.begun.wait(20)
    disk.opened.set()
    with pytest.raises(type(error)) if error else nullcontext():
        try:
            if error:
                raise error
        finally:
            checkpoints.on_stop(state)
    if isinstance(error, KeyError):
        assert state.checkpoint is None
    else:
        assert state.checkpoint == newest_good(tmp_path) == tmp_path / "checkpoints" / "step-00000002"
