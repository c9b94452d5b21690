"""All pipelines of the loader's benchmark make batches of the same pictures; what is measured of them adds up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import loader
from benchmarks.loader.pipelines import PIPELINES, Loaded, Pipeline
from benchmarks.loader.shards import litdata_chunks, photo_shards, read_samples


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("loader")
    shards = photo_shards(folder / "photos", shards=2, samples=16)
    return Pipeline(shards, litdata_chunks(shards, folder / "chunks"), side=32, workers=0, batch=16)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_makes_whole_batches(name: str, asked: Pipeline) -> None:
    batches = PIPELINES[name](asked)
    for _ in range(3):
        count, seconds = next(batches)
        assert count == 16
        assert bool(seconds) == (name == "ours")
    batches.close()  # type: ignore[attr-defined]


def test_the_shards_hold_what_img2dataset_writes(asked: Pipeline) -> None:
    (key, members), *others = read_samples(asked.shards[0])
    assert key == "00000"
    assert set(members) == {"jpg", "txt"}
    assert 50_000 < len(members["jpg"]) < 100_000
    assert len(others) == 15


def test_measured_figures_are_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0])
    used = iter([100.0, 102.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(loader, "processor_seconds", lambda: next(used))

    def batches() -> Iterator[Loaded]:
        while True:
            yield 10, {"decode": 0.5}

    found = loader.measure(batches(), images=40)
    assert found["images_per_second"] == pytest.approx(10)
    assert found["images_per_second_per_core"] == pytest.approx(20)
    assert found["decode_ms"] == pytest.approx(50)
