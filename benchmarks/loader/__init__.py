"""Our loader against open_clip's own pipeline, a plain webdataset pipeline and litdata: same pictures, same workers.

Two sets: the embedded clip-art (WebP with alpha, 96 pixels) and generated JPEGs of 512 pixels with captions, as
img2dataset writes them. All read the same tar shards, but litdata, which reads the same samples in chunks of its own
format. All decode, crop at random to 224 (the clip-art: 64) pixels, normalise, tokenize and collate. The repeats are
interleaved; medians are compared.

Images/s per core are images per second of processor time of all processes together: that is what a node with many
cores scales by, and what other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from intern_trainer.batch import total

from benchmarks.loader.pipelines import PIPELINES, Loaded, Pipeline
from benchmarks.loader.shards import clip_art_shards, litdata_chunks, photo_shards
from benchmarks.results import save

GOAL = 1.0
"""Ours is the fastest per core."""
BATCH, WARM_UP = 128, 4


def processor_seconds() -> float:
    """Of this process and those that it started, so far."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def measure(batches: Iterator[Loaded], images: int) -> dict[str, float]:
    """After a warm-up that fills the prefetch queues: rates; milliseconds an image spent waiting, and in each stage
    where the loader tells.
    """
    for _ in range(WARM_UP):
        next(batches)
    started, used, seen, stages = time.perf_counter(), processor_seconds(), 0, []
    while seen < images:
        count, seconds = next(batches)
        seen += count
        stages.append(seconds)
    wall, used = time.perf_counter() - started, processor_seconds() - used
    batches.close()  # type: ignore[attr-defined]
    spent = {**total(stages), "wait": wall}  # all of it: nobody trains here
    per_image = {f"{stage}_ms": 1e3 * seconds / seen for stage, seconds in spent.items()}
    return {"images_per_second": seen / wall, "images_per_second_per_core": seen / used, **per_image}


def compare(shards: list[Path], chunks: Path, side: int, images: int, workers: int, repeats: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PIPELINES}
    for _ in range(repeats):
        for name, make in PIPELINES.items():
            batches = make(Pipeline(shards, chunks, side, workers, BATCH))
            found[name].append(measure(batches, images))
    medians = {
        name: {key: round(statistics.median(each[key] for each in runs), 3) for key in runs[0]}
        for name, runs in found.items()
    }
    rates = {name: median["images_per_second_per_core"] for name, median in medians.items()}
    return {
        "side": side,
        "images": images,
        "medians": medians,
        "ratio_per_core": {name: round(rates["ours"] / rate, 3) for name, rate in rates.items() if name != "ours"},
        "repeats": {
            name: [round(run["images_per_second_per_core"], 1) for run in runs] for name, runs in found.items()
        },
    }


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {result['side']} pixels")
    for pipeline, median in result["medians"].items():
        stages = ", ".join(f"{key[:-3]} {ms:.2f}" for key, ms in median.items() if key.endswith("_ms"))
        print(
            f"  {pipeline:<11} {median['images_per_second_per_core']:7.1f} images/s per core, "
            f"{median['images_per_second']:7.1f} images/s" + (f"; ms an image: {stages}" if stages else "")
        )
    print(f"  ours / others per core: {result['ratio_per_core']} (goal: each >= {GOAL})")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks loader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=4000, help="measured in each repeat; of the photos, half as many")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        clip_art, photos = clip_art_shards(Path(folder, "clip-art")), photo_shards(Path(folder, "photos"))
        sets = {"clip-art": (clip_art, 64, chosen.images), "photos": (photos, 224, chosen.images // 2)}
        results = {
            name: compare(
                shards, litdata_chunks(shards, Path(folder, f"{name}-chunks")), side, images, chosen.workers,
                chosen.repeats,
            )
            for name, (shards, side, images) in sets.items()
        }  # fmt: skip
    for name, result in results.items():
        show(name, result)
    print(save("loader", {"workers": chosen.workers, "batch": BATCH, "goal": GOAL, "sets": results}))
    return 0 if all(ratio >= GOAL for result in results.values() for ratio in result["ratio_per_core"].values()) else 1
