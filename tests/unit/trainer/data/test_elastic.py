"""A run goes on with other numbers of ranks and workers: the same samples, with the same draws, in the same batches."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from intern_trainer.batch import Batch
from intern_trainer.checkpoint import Progress, check_data
from intern_trainer.config.schema import Config
from intern_trainer.data import TrainData
from intern_trainer.data.sources import catalogues
from intern_trainer.errors import CheckpointError
from intern_trainer.ranks import Ranks

from tests.unit.trainer.data.shards import ALONE, WORDS, config, good, write_shard, write_shards

BATCH, STOP, STEPS = 12, 5, 11


@pytest.fixture
def sources(tmp_path: Path) -> list[dict]:
    """39, 21 and 14 samples: at 12 a step epochs end before the stop and after it."""
    return [
        {"location": write_shards(tmp_path / "a", [13, 9, 17]), "weight": 2.0},
        {"location": write_shards(tmp_path / "b", [21]), "weight": 1.0},
        {"location": write_shards(tmp_path / "c", [6, 8]), "weight": 0.4},
    ]


def rank_of(settings: Config, rank: int, world_size: int) -> TrainData:
    found = catalogues(list(settings.data.train), None, ALONE)
    return TrainData(settings, Ranks(rank, world_size, 0, torch.device("cpu")), WORDS, found)


def rows(settings: Config, world_size: int, first: int, last: int) -> list[dict[str, torch.Tensor]]:
    """The global batch of each step: id -> picture and text as the task gets them."""
    steps: list[dict[str, torch.Tensor]] = [{} for _ in range(first, last)]
    for rank in range(world_size):
        data = rank_of(settings, rank, world_size)
        batches = data.batches(first)
        for step in steps:
            for batch in next(batches):
                step |= _by_id(batch.to(ALONE.device))
        data.close()
    return steps


def _by_id(batch: Batch) -> dict[str, torch.Tensor]:
    """Two samples of a batch may be the same one, of two epochs, with other draws: then the ids are counted."""
    found: dict[str, torch.Tensor] = {}
    for n, id in enumerate(batch.ids):
        image = batch.tensors["image"][n].flatten()
        found[f"{id} {image.double().sum().item():.6f}"] = torch.cat([image, batch.tensors["text"][n].float()])
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("ranks", "workers", "micro"),
    [((4, 2), (0, 2), (3, 2)), ((2, 4), (2, 0), (6, 1)), ((1, 3), (0, 4), (None, 4)), ((3, 1), (0, 0), (2, 4))],
)
def test_what_follows_a_stop_is_what_would_have_followed(
    sources: list[dict], ranks: tuple[int, int], workers: tuple[int, int], micro: tuple[int | None, int]
) -> None:
    def settings(part: int) -> Config:
        return config(sources, workers=workers[part], micro_batch=micro[part], global_batch=BATCH, lanes=6)

    uninterrupted = rows(config(sources, global_batch=BATCH, lanes=6), 1, 0, STEPS)
    resumed = rows(settings(0), ranks[0], 0, STOP) + rows(settings(1), ranks[1], STOP, STEPS)
    for before, now in zip(uninterrupted, resumed, strict=True):
        assert len(before) == BATCH
        assert before.keys() == now.keys()
        assert all(torch.equal(before[key], now[key]) for key in before)
    seen = [key.split(" ")[0] for step in uninterrupted for key in step]
    assert min(seen.count(id) for id in set(seen)) >= 1 < max(seen.count(id) for id in set(seen))


def test_sources_that_changed_are_refused_and_the_way_on_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fingerprint(location: str) -> dict:
        return rank_of(config({"location": location, "name": "set"}), 0, 1).fingerprint

    location = write_shards(tmp_path, [9, 9])
    progress = Progress(step=70, data_fingerprint=fingerprint(location))
    check_data(progress, fingerprint(location))
    write_shard(tmp_path / "001.tar", [{**good(n), "txt": b"a longer caption"} for n in range(9)])  # as many, larger
    write_shard(tmp_path / "002.tar", [good(n) for n in range(9)])
    for other in (location, f"{tmp_path}/{{000..002}}.tar", f"{tmp_path}/{{001,000}}.tar", f"{tmp_path}/000.tar"):
        with pytest.raises(CheckpointError, match="the data changed since step 70") as error:
            check_data(progress, fingerprint(other))
        assert "sources.0.digest" in error.value.found
        assert "--new-order" in error.value.fix
    with caplog.at_level(logging.WARNING):
        check_data(progress, fingerprint(f"{tmp_path}/000.tar"), new_order=True)
    assert "new one from step 70 on (--new-order): sources.0.digest" in caplog.text
