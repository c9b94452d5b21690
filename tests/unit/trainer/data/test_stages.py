"""Times of the stages: a picture's share of the time that passes, however many threads read at once."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import pytest
from intern_trainer.data import build_train_data, read_ahead

from benchmarks.object_store import Behaviour, folder, serving
from tests.unit.trainer.data.shards import ALONE, WORDS, config, write_shards


def test_a_remote_source_reads_no_longer_than_time_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads wait for samples at the same time."""
    monkeypatch.setattr(read_ahead.Plan, "chunks", lambda _: None)
    write_shards(tmp_path / "served", [64])
    with serving(folder(tmp_path / "served"), Behaviour()) as store:
        settings = config(f"{store.address}/000.tar", index_dir=tmp_path / "indexes", global_batch=16)
        data = build_train_data(settings, ALONE, WORDS)
        store.behaviour = Behaviour(latency=0.02)
        began = time.perf_counter()
        seconds = [batch.seconds for step in islice(data.batches(0), 2) for batch in step]
        passed = time.perf_counter() - began
        data.close()
    assert sum(sum(one.values()) for one in seconds) <= passed
    assert all(max(one, key=lambda stage: one[stage]) == "read" for one in seconds)
