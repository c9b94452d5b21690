"""What is saved comes back, in any layout; what the files are."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from intern_trainer.checkpoint import CheckpointReader, Progress, load, newest_good, save, shards
from intern_trainer.checkpoint.estimate import announce_slow_saves
from intern_trainer.checkpoint.progress import rng_state, set_rng_state
from intern_trainer.ranks import Ranks
from safetensors.torch import load_file

from tests.unit.trainer.checkpoint.fakes import ALONE, CONFIG, FakeEngine, fresh_state, on_ranks, save_on


@pytest.mark.parametrize(
    ("writers", "readers", "cut"), [(1, 1, "flat"), (2, 3, "flat"), (3, 2, "whole"), (4, 1, "flat"), (1, 4, "whole")]
)
def test_any_layout_loads_any_other(tmp_path: Path, writers: int, readers: int, cut: str) -> None:
    path = save_on(writers, tmp_path, cut=cut)

    def one(ranks: Ranks) -> bool:
        engine = FakeEngine(
            {k: {n: torch.zeros_like(t) for n, t in ts.items()} for k, ts in fresh_state().items()}, ranks.rank, readers
        )
        engine.values = {}
        progress = load(engine, path, ranks)
        assert (progress.step, progress.samples, progress.world_size) == (10, 80, writers)
        assert engine.values == {"steps": 17, "scaler": {"scale": 1024.0}}
        return engine.loaded_as_saved(fresh_state()) and len(engine.loaded) == 21

    assert on_ranks(readers, one) == [True] * readers


def test_full_tensors_with_their_shapes_and_types(tmp_path: Path) -> None:
    reader = CheckpointReader(save_on(3, tmp_path))
    for kind, tensors in fresh_state().items():
        assert reader.names(kind) == sorted(tensors)
        for name, tensor in tensors.items():
            found = reader.tensor(kind, name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor)
    assert reader.names("optim.momentum_buffer") == []
    with pytest.raises(KeyError, match="momentum"):
        reader.read("optim.momentum_buffer", "logit_scale", 0, 1)
    assert reader.config == CONFIG
    assert reader.progress.versions["torch"] == torch.__version__


def test_weights_are_the_average_or_the_last_ones(tmp_path: Path) -> None:
    reader, state = CheckpointReader(save_on(2, tmp_path)), fresh_state()
    for which, kind in (("ema", "ema"), ("raw", "param")):
        weights = dict(reader.weights(which))
        assert set(weights) == {*state["param"], *state["frozen"], *state["buffer"]}
        assert all(torch.equal(weights[name], tensor) for name, tensor in state[kind].items())
        assert torch.equal(weights["text.table"], state["frozen"]["text.table"])


def test_a_resume_in_the_same_layout_reads_one_index(tmp_path: Path) -> None:
    reader = CheckpointReader(save_on(4, tmp_path), rank=2)
    for piece in FakeEngine(fresh_state(), 2, 4).slices():
        reader.read(piece.kind, piece.name, piece.start, piece.tensor.numel())
    assert len(reader._parts_left) == 3


def test_files_are_bounded_and_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = shards.write_slices
    monkeypatch.setattr(
        "intern_trainer.checkpoint.write.write_slices", lambda s, folder, rank: write(s, folder, rank, file_bytes=100)
    )
    path = save_on(2, tmp_path)
    files = sorted(path.glob("*.safetensors"))
    assert len(files) > 10
    assert max(sum(t.nbytes for t in load_file(file).values()) for file in files) <= 100
    assert torch.equal(
        CheckpointReader(path).tensor("param", "image.stem.weight"), fresh_state()["param"]["image.stem.weight"]
    )
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) | {"manifest.json"} == {file.name for file in path.iterdir()}
    for name, facts in manifest["files"].items():
        data = (path / name).read_bytes()
        assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_nothing_else_is_left_behind_and_a_step_can_be_written_again(tmp_path: Path) -> None:
    save_on(2, tmp_path, seed=0)
    (tmp_path / "checkpoints" / ".tmp-step-00000010").mkdir()
    path = save_on(2, tmp_path, seed=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert torch.equal(CheckpointReader(path).tensor("param", "text.proj"), fresh_state(1)["param"]["text.proj"])
    assert newest_good(tmp_path) == path


def test_random_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        return (
            float(torch.rand(())),
            float(np.random.rand()),
            float(np.random.randn()),
            random.random(),
            random.gauss(0, 1),
        )

    draw()
    path = save(FakeEngine(fresh_state()), Progress(3), tmp_path, ALONE, CONFIG)
    expected = [draw(), draw()]
    torch.manual_seed(5)
    load(FakeEngine(fresh_state()), path, ALONE)
    assert [draw(), draw()] == expected
    state = json.loads(json.dumps(rng_state(ALONE.device)))
    expected = [draw()]
    set_rng_state(state, ALONE.device)
    assert [draw()] == expected


def test_another_number_of_ranks_draws_the_same_new_numbers_each_time(tmp_path: Path) -> None:
    path = save_on(2, tmp_path)

    def draw(seed: int) -> float:
        torch.manual_seed(seed)
        load(FakeEngine(fresh_state()), path, ALONE)
        return float(torch.rand(()))

    assert draw(1) == draw(2)


def test_a_slow_save_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(fresh_state())
    assert announce_slow_saves(engine, tmp_path, ALONE) is None  # too small to matter
    monkeypatch.setattr("intern_trainer.checkpoint.estimate.TOO_SMALL_TO_ASK", 0)
    monkeypatch.setattr("intern_trainer.checkpoint.estimate.PROBE_BYTES", 1 << 16)
    with caplog.at_level(logging.WARNING):
        seconds = announce_slow_saves(engine, tmp_path, ALONE)
        assert seconds is not None
        assert caplog.text == ""
        announce_slow_saves(engine, tmp_path, ALONE, limit=seconds / 1e6)
    assert "--shutdown-timeout" in caplog.text
    assert list(tmp_path.iterdir()) == []
