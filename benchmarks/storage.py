"""Training reads from simulated object storage: throughput against the bandwidth limit, bytes read against bytes used.

    python -m benchmarks storage

1,000 shards of 200 pictures of 100 kB behind a local HTTP server with latency and a bandwidth limit. The pictures are
JPEGs of 32 pixels padded to that size, so that decoding costs next to nothing: it is the reading that is measured, not
what a machine decodes. The loader runs with two workers, decodes and collates. What comes before the windows are first
filled is not measured; the figures have an error of the chunks that are on their way. With faults, 1 % of the requests
fail, 0.5 % end in the middle of the body, and 0.2 % stall. No run may lose a sample.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from intern_trainer.config.schema import Config
from intern_trainer.data import index, storage
from intern_trainer.data.storage import Storage
from intern_trainer.data.train import build_train_data
from intern_trainer.data.views import PlainText, Views
from intern_trainer.ranks import Ranks

from benchmarks.object_store import Behaviour, folder, serving
from benchmarks.results import save
from benchmarks.tiny import tiny_shard

SHARDS, SAMPLES, PICTURE = 1000, 200, 100_000
BATCH, LANES, WINDOW = 64, 4, 250
FAULTS = {"fails": 0.01, "cuts": 0.005, "stalls": 0.002}
STALLED_SECONDS = 2
"""What a stalled request is given up after, here (`storage.READ_SECONDS` in a run): these runs are short."""
MIN_THROUGHPUT, MAX_READ = 0.9, 1.1
VIEWS = Views(texts=PlainText(lambda captions: torch.zeros(len(captions), 1, dtype=torch.int64)))


def serve(shard: Path, behaviour: Behaviour, pipe: Connection) -> None:
    """In a process of its own, so that it does not compete for Python's lock: every name is the same shard."""
    whole = folder(shard.parent)(shard.name)
    with serving(lambda name: whole if name.endswith(".tar") else None, behaviour) as store:
        pipe.send(store.address)
        while pipe.recv() == "counts":
            pipe.send({"sent": store.sent, "again": store.again, "requests": store.requests, "faults": store.faults})


def settings(address: str, indexes: Path, cache: Path | None) -> Config:
    source = {"location": f"{address}/{{0000..{SHARDS - 1:04d}}}.tar", "name": "remote"}
    data = {"train": source, "lanes": LANES, "shuffle_window": WINDOW, "workers": 2, "index_dir": indexes}
    if cache is not None:
        data |= {"cache_dir": cache, "cache_gb": 2}
    return Config.model_validate({"model": {"image_size": 32}, "data": data, "train": {"global_batch": BATCH}})


def write_indexes(shard: Path, address: str, indexes: Path) -> None:
    """As `intern-trainer data index` would, without reading 20 GB."""
    template, store = index.build(Storage(), str(shard)), Storage()
    for number in range(SHARDS):
        location = f"{address}/{number:04d}.tar"
        stamp = f'{shard.stat().st_size}:"v1"'
        path = index.path_of(location, stamp, indexes)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(replace(template, stamp=stamp).to_bytes())
    assert store.stamp(f"{address}/0000.tar")[1] == stamp


def measure(behaviour: Behaviour, seconds: float, cached: bool) -> dict[str, Any]:
    """One run of the loader."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    with TemporaryDirectory() as made:
        shard = tiny_shard(Path(made) / "shard.tar", SAMPLES, PICTURE)
        server = context.Process(target=serve, args=(shard, behaviour, theirs))
        server.start()
        address = ours.recv()

        def counts() -> dict[str, int]:
            ours.send("counts")
            return ours.recv()

        write_indexes(shard, address, Path(made) / "indexes")
        config = settings(address, Path(made) / "indexes", Path(made) / "cache" if cached else None)
        began = time.perf_counter()
        data = build_train_data(config, Ranks(0, 1, 0, torch.device("cpu")), VIEWS)
        batches = data.batches(0)
        next(batches)
        first_batch = time.perf_counter() - began
        for _ in range(LANES * WINDOW * 2 // BATCH):  # every lane in its third window: a steady state
            next(batches)
        before, began, steps = counts(), time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            steps += 1
        elapsed, after = time.perf_counter() - began, counts()
        report = data.report()
        data.close()
        ours.send("end")
        server.join()
    used = steps * BATCH * PICTURE
    assert not report["bad"], report
    return {
        "throughput": round(used / elapsed / behaviour.bandwidth, 3),
        "read_by_used": round((after["sent"] - before["sent"]) / used, 3),
        "read_again_by_read": round(after["again"] / after["sent"], 3),
        "samples": steps * BATCH,
        "requests": after["requests"] - before["requests"],
        "faults_in_all": after["faults"],
        "first_batch_seconds": round(first_batch, 2),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks storage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="of each of the four runs; 16 chunks are on their way at any time"
    )
    parser.add_argument("--bandwidth", type=float, default=40, metavar="MB/s")
    parser.add_argument("--latency", type=float, default=50, metavar="MS")
    chosen = parser.parse_args(arguments)
    storage.READ_SECONDS = STALLED_SECONDS
    torch.set_num_threads(1)
    plain = Behaviour(chosen.latency / 1e3, chosen.bandwidth * 1e6)
    faulty = replace(plain, **FAULTS, chance=random.Random(0))
    print(f"goal: throughput >= {MIN_THROUGHPUT} of {chosen.bandwidth:g} MB/s, read / used <= {MAX_READ}")
    runs = {}
    for where in ("memory", "cache folder"):
        for name, behaviour in (("no faults", plain), ("faults", faulty)):
            runs[f"{name}, {where}"] = found = measure(behaviour, chosen.seconds, where == "cache folder")
            print(f"  {name}, {where}: {found}", flush=True)
    facts = {"shards": SHARDS, "samples_a_shard": SAMPLES, "picture_bytes": PICTURE, "lanes": LANES, "window": WINDOW}
    print(save("storage", {**facts, **vars(chosen), "faults": FAULTS, "runs": runs}))
    good = all(run["throughput"] >= MIN_THROUGHPUT and run["read_by_used"] <= MAX_READ for run in runs.values())
    return 0 if good else 1
