"""How long a run takes to start, and what memory, anywhere in the data.

    python -m benchmarks order

1. First batch at 0, 10 and 90 % of 1 M samples: real shards, read by two loader processes.
2. Full size: 1 M shards with 10 B samples over 1,024 ranks. One of the ranks starts at 0 and at 70 % of an epoch, in a
   process of its own, from a generated catalogue and generated indexes, by the classes that train; only the tars'
   bodies are absent (sparse files), so that it ends with the samples' ids instead of their pictures. A worker's memory
   is that of a bare reader: where shards are remote, what it reads ahead (data.read_ahead_mb) comes on top.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from intern_trainer.config.schema import Config
from intern_trainer.data import catalogue, index, sources
from intern_trainer.data.order import Order, rank_offsets
from intern_trainer.data.reader import Reader
from intern_trainer.data.storage import Storage
from intern_trainer.data.train import TrainData, build_train_data
from intern_trainer.data.transforms import CentreCrop
from intern_trainer.data.views import PlainText, Views
from intern_trainer.ranks import Ranks

from benchmarks.results import save
from benchmarks.tiny import tiny_shard

POSITIONS = (0.0, 0.1, 0.9)
SHARDS, SAMPLES, WORLD, LANES, BATCH = 1_000_000, 10_000, 1024, 4096, 32_768
MAX_SECONDS, MAX_MB = 10.0, 1000
VIEWS = Views(texts=PlainText(lambda captions: torch.zeros(len(captions), 1, dtype=torch.int64)))


class OneOfMany(Ranks):
    """A rank without the others: what rank 0 would tell all, it finds out itself, and pays for the way."""

    def on_main(self, action: Callable[[], Any]) -> Any:
        return pickle.loads(pickle.dumps(action()))

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.world_size


def config(location: str, folder: Path, batch: int, lanes: int, workers: int) -> Config:
    data = {"train": {"location": location, "name": "set"}, "lanes": lanes, "workers": workers, "index_dir": folder}
    return Config.model_validate({"model": {"image_size": 32}, "data": data, "train": {"global_batch": batch}})


def first_batches(folder: Path) -> dict[str, float]:
    """Seconds from nothing to the first batch, by place in 1 M samples (100 shards, links to one tar)."""
    one = tiny_shard(folder / "one.tar", SAMPLES)
    for number in range(100):
        (folder / f"{number:03d}.tar").symlink_to(one)
    settings = config(f"{folder}/{{000..099}}.tar", folder, 256, 64, 2)
    alone = Ranks(0, 1, 0, torch.device("cpu"))
    build_train_data(settings, alone, VIEWS).close()  # makes the indexes
    seconds = {}
    for place in POSITIONS:
        began = time.perf_counter()
        data = build_train_data(settings, alone, VIEWS)
        next(data.batches(int(place * 1_000_000) // 256))
        seconds[f"{place:.0%}"] = round(time.perf_counter() - began, 3)
        data.close()
    return seconds


def generate(folder: Path, rank: int, steps: list[int]) -> None:
    """The catalogue of the full size, and the indexes and empty tars of the shards that the rank begins with."""
    settings = config(f"{folder}/{{0000000..{SHARDS - 1:07d}}}.tar", folder, BATCH, LANES, 2)
    location = list(settings.data.train[0].location)
    template = index.build(Storage(), str(tiny_shard(folder / "template.tar", SAMPLES)))
    catalogue.keep(
        sources.patterns(location), folder, sources.patterns(location), [SAMPLES] * SHARDS, [template.end] * SHARDS
    )
    seed, window = settings.train.seed, settings.data.shuffle_window
    order = Order([np.full(SHARDS, SAMPLES)], [1.0], seed, LANES, window)
    (slots,) = rank_offsets(BATCH, LANES, 1, WORLD, rank)
    for shard in {order.at(step * BATCH + int(slot)).shard for step in steps for slot in slots}:
        path = folder / f"{shard:07d}.tar"
        with open(path, "wb") as file:
            file.truncate(template.end + 1024)
        _, stamp = Storage().stamp(str(path))
        index.path_of(str(path), stamp, folder).write_bytes(replace(template, stamp=stamp).to_bytes())


def start(folder: Path, rank: int, step: int) -> dict[str, float]:
    """In a process of its own: from the configuration to the ids of the rank's share of a batch, by two workers."""
    location = f"{folder}/{{0000000..{SHARDS - 1:07d}}}.tar"
    settings, ranks = config(location, folder, BATCH, LANES, 2), OneOfMany(rank, WORLD, 0, torch.device("cpu"))
    libraries = psutil.Process().memory_info().rss
    began, cpu = time.perf_counter(), time.process_time()
    data = build_train_data(settings, ranks, VIEWS)
    data._order.at(step * BATCH)  # as `batches` does before the workers start
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    for worker in range(2):
        context.Process(target=lambda worker=worker: queue.put(_worker(data, step, worker))).start()
    found = [queue.get() for _ in range(2)]
    cpu = time.process_time() - cpu
    seconds = time.perf_counter() - began
    assert len({id for ids, _ in found for id in ids}) == BATCH // WORLD
    own = [private for _, private in found]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "rank_mb": round((_peak() + sum(own)) / 1e6),
        "of_it_libraries_mb": round(libraries / 1e6),
        "of_it_each_worker_mb": round(max(own) / 1e6),
    }


def _worker(data: TrainData, step: int, worker: int) -> tuple[list[str], int]:
    """Ids of the worker's rows, and the memory that it does not share with its rank."""
    reader = Reader(data._sources, data._config.data, data._config.data.index_dir, CentreCrop(32))
    _, positions = next(data._rows(step, worker, 2))
    ids = [reader.id(data._order.at(position)) for position in positions]
    return ids, psutil.Process().memory_full_info().uss


def _peak() -> int:
    """Bytes; Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def full_size(folder: Path, rank: int) -> dict[str, dict[str, float]]:
    steps = {"0%": 0, "70%": int(0.7 * SHARDS * SAMPLES / BATCH)}
    generate(folder, rank, list(steps.values()))
    found = {}
    for place, step in steps.items():
        command = [sys.executable, "-m", "benchmarks", "order", "--start", str(folder), str(rank), str(step)]
        found[place] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks order", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", nargs=3, metavar=("FOLDER", "RANK", "STEP"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.start:
        print(json.dumps(start(Path(chosen.start[0]), int(chosen.start[1]), int(chosen.start[2]))))
        return 0
    with TemporaryDirectory() as folder:
        seconds = first_batches(Path(folder))
    print(f"first batch of 1 M samples, by place: {seconds} s")
    with TemporaryDirectory() as folder:
        full = full_size(Path(folder), rank=717)
    size = f"{SHARDS:,} shards, {SHARDS * SAMPLES:,} samples, rank 717 of {WORLD}"
    print(f"{size} (goal: <= {MAX_SECONDS:.0f} s, {MAX_MB} MB):", *(f"  {p}: {f}" for p, f in full.items()), sep="\n")
    goal = {"seconds": MAX_SECONDS, "rank_mb": MAX_MB}
    print(save("order", {"first_batch_seconds": seconds, "full_size": full, "of": size, "goal": goal}))
    return 0 if all(each[key] <= goal[key] for each in full.values() for key in goal) else 1
