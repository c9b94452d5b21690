"""Batches of a run in phases: other pictures and other cuts of one and the same sequence of samples."""

from __future__ import annotations

import pytest
import torch
from intern_trainer.batch import Batch
from intern_trainer.config.schema import Config
from intern_trainer.data import TrainData, build_train_data
from intern_trainer.data.sources import catalogues
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks

from tests.unit.trainer.data.shards import ALONE, WORDS, config, write_shards

PHASES = [
    {"until": 0.4, "image_size": 6, "global_batch": 16, "micro_batch": 4},
    {"until": 0.7, "image_size": 12, "global_batch": 4},
]
STEPS = 20  # of 8 samples without phases; with them 4 of 16, 12 of 4, 6 of 8


def phased(train: str, workers: int = 0, phases: list | None = None) -> Config:
    plain = config(train, workers=workers)
    settings = {"steps": STEPS, "phases": PHASES if phases is None else phases}
    return Config.model_validate(plain.model_dump() | {"train": plain.train.model_dump() | settings})


def as_rank(settings: Config, rank: int = 0, world_size: int = 1) -> TrainData:
    sources = catalogues(list(settings.data.train), None, ALONE)
    return TrainData(settings, Ranks(rank, world_size, 0, torch.device("cpu")), WORDS, sources)


def read(data: TrainData, step: int, steps: int) -> list[list[Batch]]:
    batches = data.batches(step)
    found = [[batch.to(ALONE.device) for batch in next(batches)] for _ in range(steps)]
    data.close()
    return found


def ids(step: list[Batch]) -> list[str]:
    return [id for batch in step for id in batch.ids]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), [13, 9, 16])


def test_phases_cut_the_same_sequence_into_other_batches(train: str) -> None:
    plain = read(as_rank(phased(train, phases=[])), 0, 20)
    steps = read(as_rank(phased(train)), 0, 24)  # two past the end: the last phase goes on
    assert [len(ids(step)) for step in steps] == [16] * 4 + [4] * 12 + [8] * 8
    assert [len(step) for step in steps] == [4] * 4 + [1] * 20  # micro-batches
    assert [step[0].tensors["image"].shape[-1] for step in steps] == [6] * 4 + [12] * 12 + [8] * 8
    assert [sorted(ids(step)) for step in steps[:4]] == [
        sorted(ids(a) + ids(b)) for a, b in zip(plain[:8:2], plain[1:8:2], strict=True)
    ]
    assert [ids(step) for step in steps[16:22]] == [ids(step) for step in plain[14:]]
    for mine, other in zip(steps[16:22], plain[14:], strict=True):  # and with the same draws
        torch.testing.assert_close(mine[0].tensors["image"], other[0].tensors["image"], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world_size", "workers"), [(2, 2), (4, 0)])
def test_ranks_and_workers_change_nothing_across_a_change_of_phase(train: str, world_size: int, workers: int) -> None:
    alone = read(as_rank(phased(train)), 2, 17)
    shared = [read(as_rank(phased(train, workers), rank, world_size), 2, 17) for rank in range(world_size)]
    for number, step in enumerate(alone):
        assert sorted(ids(step)) == sorted(id for rank in shared for id in ids(rank[number]))


def test_starting_at_any_step_equals_running_to_it(train: str) -> None:
    running = read(as_rank(phased(train)), 0, 22)
    for step in (3, 4, 5, 15, 16, 21):
        (found,) = read(as_rank(phased(train, workers=1)), step, 1)
        assert ids(found) == ids(running[step])
        assert torch.equal(found[0].tensors["image"], running[step][0].tensors["image"])


def test_the_fingerprint_knows_batches_by_step_and_not_pictures(train: str) -> None:
    fingerprint = as_rank(phased(train)).fingerprint
    assert fingerprint["global_batch"] == [[0, 16], [4, 4], [16, 8]]
    smaller = [{"until": 0.5, "image_size": 6}]
    assert as_rank(phased(train, phases=smaller)).fingerprint == as_rank(phased(train, phases=[])).fingerprint


def test_the_largest_batch_must_find_its_samples(train: str) -> None:
    with pytest.raises(DataError, match=r"holds 38 samples .* one global batch takes 40"):
        build_train_data(phased(train, phases=[{"until": 0.5, "global_batch": 40}]), ALONE, WORDS)
