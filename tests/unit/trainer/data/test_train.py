"""The training reader: the same samples and pictures on any number of ranks and workers, from any step."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from intern_trainer.batch import Batch
from intern_trainer.config.schema import Config
from intern_trainer.data import TrainData, build_train_data
from intern_trainer.data.sources import catalogues
from intern_trainer.errors import DataError, EnvironmentFault
from intern_trainer.ranks import Ranks

from tests.unit.trainer.data.shards import ALONE, WORDS, config, good, write_shard, write_shards


def read(data: TrainData, step: int, steps: int) -> list[list[Batch]]:
    batches = data.batches(step)
    found = [[batch.to(ALONE.device) for batch in next(batches)] for _ in range(steps)]
    data.close()
    return found


def as_rank(settings: Config, rank: int, world_size: int) -> TrainData:
    """What rank `rank` builds; its sources are counted alone, as if the others had told the same."""
    sources = catalogues(list(settings.data.train), None, ALONE)
    return TrainData(settings, Ranks(rank, world_size, 0, torch.device("cpu")), WORDS, sources)


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_left_out_leave_the_others_in_their_places(tmp_path: Path, workers: int) -> None:
    settings = config(write_shards(tmp_path, [20, 14]), workers=workers)
    whole = [[batch.ids for batch in step] for step in read(build_train_data(settings, ALONE, WORDS), 0, 7)]
    batches = (data := build_train_data(settings, ALONE, WORDS)).batches(1, left_out=[0, 2, 3, 5])
    assert [[batch.ids for batch in next(batches)] for _ in range(3)] == [whole[1], whole[4], whole[6]]
    data.close()


@pytest.fixture
def two_sources(tmp_path: Path) -> list[dict]:
    return [
        {"location": write_shards(tmp_path / "a", [13, 9, 16]), "weight": 2.0},
        {"location": write_shards(tmp_path / "b", [21]), "weight": 1.0},
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world_size", "workers", "micro"), [(1, 2, None), (2, 0, 2), (4, 2, 1), (1, 3, 4)])
def test_ranks_and_workers_change_nothing(two_sources: list, world_size: int, workers: int, micro: int | None) -> None:
    """Over epoch ends: 12 steps of 8 on 59 samples. Row by row where there is one micro-step, else batch by batch."""
    alone = read(as_rank(config(two_sources), 0, 1), 0, 12)
    settings = config(two_sources, workers=workers, micro_batch=micro)
    shared = [read(as_rank(settings, rank, world_size), 0, 12) for rank in range(world_size)]
    for step in range(12):
        (whole,) = alone[step]
        parts = [batch for rank in shared for batch in rank[step]]
        expected = {id: (whole.tensors["image"][n], whole.tensors["text"][n]) for n, id in enumerate(whole.ids)}
        ids = [id for part in parts for id in part.ids]
        assert sorted(ids) == sorted(whole.ids)
        if all(len(rank[step]) == 1 for rank in shared):
            assert ids == whole.ids
        for part in parts:
            for n, id in enumerate(part.ids):
                torch.testing.assert_close(part.tensors["image"][n], expected[id][0], rtol=0, atol=0)
                assert torch.equal(part.tensors["text"][n], expected[id][1])


def test_starting_at_a_step_equals_running_to_it(two_sources: list) -> None:
    running = read(as_rank(config(two_sources), 0, 1), 0, 30)
    for step in (1, 17, 29):
        (first,) = read(as_rank(config(two_sources, workers=1), 0, 1), step, 1)[0]
        assert first.ids == running[step][0].ids
        assert torch.equal(first.tensors["image"], running[step][0].tensors["image"])


def test_a_batch_is_what_the_task_expects(two_sources: list) -> None:
    (batch,) = read(as_rank(config(two_sources), 0, 1), 0, 1)[0]
    assert batch.tensors["image"].shape == (8, 3, 8, 8)
    assert batch.tensors["image"].is_contiguous(memory_format=torch.channels_last)
    source, shard, key = batch.ids[0].split("/")
    assert source in ("a", "b")
    assert shard.isdigit()
    for id, caption in zip(batch.ids, batch.extras["caption"], strict=True):  # picture and caption belong together
        _, shard, key = id.split("/")
        assert caption == f"caption {int(shard) * 100 + int(key)}"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_is_held_in_8_bits_until_its_batches_are_moved(two_sources: list, workers: int) -> None:
    """So that one loss of many micro-batches takes no more of a GPU than one of them."""

    def tensors() -> dict[int, torch.Tensor]:
        """Without those that lie ready in the loader's shared memory."""
        found = (each for each in gc.get_objects() if type(each) is torch.Tensor)
        return {id(each): each for each in found if not each.is_shared()}

    data = as_rank(config(two_sources, workers=workers, micro_batch=4), 0, 1)
    batches, before = data.batches(0), tensors()
    step = next(batches)
    held = [tensor for key, tensor in tensors().items() if key not in before]
    data.close()
    assert {tensor.dtype for tensor in held} == {torch.uint8, torch.int64}
    assert sum(tensor.nbytes for tensor in held) == 8 * (8 * 8 * 3 + 2 * 8)  # pictures and two numbers a caption
    for batch in step:
        first, again = batch.to(ALONE.device), batch.to(ALONE.device)
        assert batch.tensors.keys() == {"text"}
        assert first.finish is None
        assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in ("image", "text"))
        assert first.to(ALONE.device).tensors["image"] is first.tensors["image"]


def test_shuffled_captions_are_all_there_and_all_wrong(tmp_path: Path) -> None:
    settings = config(write_shards(tmp_path, [11, 13]), shuffle_captions=True)
    batches = [batch for step in read(as_rank(settings, 0, 1), 0, 3) for batch in step]
    ids = [id for batch in batches for id in batch.ids]
    captions = [caption for batch in batches for caption in batch.extras["caption"]]
    own = [f"caption {int(id.split('/')[1]) * 100 + int(id.split('/')[2])}" for id in ids]
    assert sorted(captions) == sorted(own)
    assert all(a != b for a, b in zip(captions, own, strict=True))


def test_the_fingerprint_knows_other_data_but_not_other_folders(tmp_path: Path) -> None:
    first = as_rank(config(write_shards(tmp_path / "x" / "set", [9, 9])), 0, 1).fingerprint
    moved = as_rank(config(write_shards(tmp_path / "y" / "set", [9, 9])), 0, 1).fingerprint
    other = as_rank(config(write_shards(tmp_path / "z" / "set", [9, 10])), 0, 1).fingerprint
    assert first == moved
    assert first != other
    assert first != as_rank(config(f"{tmp_path}/x/set/*.tar", lanes=2), 0, 1).fingerprint


def test_too_few_samples_for_a_batch(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [good(n) for n in range(7)])
    with pytest.raises(DataError, match=r"holds 7 samples .* one global batch takes 8") as error:
        build_train_data(config(f"{tmp_path}/s.tar"), ALONE, WORDS)
    assert error.value.fix.startswith("train.global_batch=4,")  # 4 lanes
    with pytest.raises(DataError) as error:
        build_train_data(config(f"{tmp_path}/s.tar", lanes=8), ALONE, WORDS)
    assert error.value.fix.startswith("train.global_batch=7 data.lanes=7,")


def test_workers_leave_signals_to_the_main_process_and_end_with_close(tmp_path: Path) -> None:
    data = as_rank(config(write_shards(tmp_path, [20]), workers=2), 0, 1)
    batches = data.batches(0)
    next(batches)
    assert data._feed is not None
    workers = data._feed._values._workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    for _ in range(20):
        next(batches)
    assert all(worker.is_alive() for worker in workers)
    data.close()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_a_killed_worker_is_a_message(tmp_path: Path) -> None:
    data = as_rank(config(write_shards(tmp_path, [20]), workers=1), 0, 1)
    batches = data.batches(0)
    next(batches)
    assert data._feed is not None
    os.kill(data._feed._values._workers[0].pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="loader process died"):
        list(islice(batches, 100))
    data.close()


SCRIPT = """
import sys, time
from tests.unit.trainer.data.shards import ALONE, config, WORDS
from intern_trainer.data import build_train_data
data = build_train_data(config(sys.argv[1], workers=2), ALONE, WORDS)
batches = data.batches(0)
next(batches)
print(*(worker.pid for worker in data._feed._values._workers), flush=True)
if sys.argv[2] == "fail":
    raise SystemExit(5)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["fail", "kill"])
def test_workers_end_with_a_parent_that_never_closes_them(end: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, write_shards(tmp_path, [20]), end]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        if end == "kill":
            parent.kill()
        assert parent.wait(60) == (5 if end == "fail" else -signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert len(workers) == 2
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
