"""Our loader against the pipeline that open_clip builds of webdataset: same shards, same number of workers.

Two sets: the embedded clip-art (WebP with alpha, 96 pixels) and generated JPEGs of 512 pixels with captions, as
img2dataset writes them. Both pipelines decode, crop at random to 224 (the clip-art: 64) pixels, normalise, tokenize and
collate. The repeats are interleaved; medians are compared.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import webdataset as wds
from intern_trainer.config.schema import Config
from intern_trainer.data import PlainText, Views, build_train_data, embedded
from intern_trainer.ranks import Ranks
from intern_zoo.text import tokenizer
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmarks.results import save

GOAL = 0.9
BATCH, WARM_UP = 128, 4


def photo_shards(folder: Path, shards: int = 4, samples: int = 500) -> list[Path]:
    """JPEGs of 512 pixels whose size in bytes is that of photographs (smooth colour with some noise), with captions."""
    random, paths = np.random.default_rng(0), []
    for shard in range(shards):
        paths.append(folder / f"{shard:05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(samples):
                coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
                picture = np.asarray(coarse.resize((512, 512), Image.Resampling.BICUBIC), dtype=np.int16)
                picture = picture + random.integers(-12, 13, picture.shape, dtype=np.int16)
                buffer = io.BytesIO()
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
                words = " ".join(random.choice(["red", "house", "lake", "a", "dog", "on", "the", "old"], 9))
                for suffix, content in (("jpg", buffer.getvalue()), ("txt", words.encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def ours(shards: list[Path], side: int, workers: int, length: int) -> Iterator[int]:
    """Batch sizes, for ever."""
    config = Config.model_validate(
        {
            "model": {"image_size": side},
            "data": {"train": [{"location": [str(s) for s in shards]}], "workers": workers, "lanes": 16},
            "train": {"global_batch": BATCH},
        }
    )
    data = build_train_data(config, Ranks(0, 1, 0, torch.device("cpu")), Views(texts=PlainText(tokenizer(length))))
    try:
        for micro_batches in data.batches(0):
            yield sum(len(batch) for batch in micro_batches)
    finally:
        data.close()


def webdataset_pipeline(shards: list[Path], side: int, workers: int, length: int) -> Iterator[int]:
    """As open_clip trains: resampled shards, shuffle buffer, PIL, torchvision, batches made in the workers."""
    config, tokenize = Config(), tokenizer(length)
    augment = config.data.augment
    prepare = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                side, augment.crop_scale, augment.crop_ratio, transforms.InterpolationMode.BICUBIC
            ),
            transforms.ToTensor(),
            transforms.Normalize(config.data.mean, config.data.std),
        ]
    )

    def sample(found: dict[str, Any]) -> tuple[Tensor, Tensor]:
        picture = next(found[e] for e in ("jpg", "webp") if e in found)
        caption = found["txt"] if "txt" in found else found["json"]["caption"]
        return prepare(picture), tokenize([caption])[0]

    dataset = wds.WebDataset([str(s) for s in shards], resampled=True, shardshuffle=False, empty_check=False)
    pipeline = dataset.shuffle(2048, initial=BATCH).decode("pilrgb").map(sample).batched(BATCH)
    loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=workers)
    for image, _ in loader:
        yield len(image)


def images_per_second(batches: Iterator[int], images: int) -> float:
    """After a warm-up that fills the prefetch queues."""
    for _ in range(WARM_UP):
        next(batches)
    start, seen = time.perf_counter(), 0
    while seen < images:
        seen += next(batches)
    rate = seen / (time.perf_counter() - start)
    batches.close()  # type: ignore[attr-defined]
    return rate


def compare(shards: list[Path], side: int, images: int, workers: int, repeats: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"ours": [], "webdataset": []}
    for _ in range(repeats):
        for name, make in (("ours", ours), ("webdataset", webdataset_pipeline)):
            rates[name].append(images_per_second(make(shards, side, workers, 24), images))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {
        "side": side,
        "images": images,
        "images_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "ratio": round(medians["ours"] / medians["webdataset"], 3),
        "repeats": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks loader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=4000, help="measured in each repeat")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        sets = {
            "embedded": (embedded.shards("train"), 64, chosen.images),
            "photos": (photo_shards(Path(folder)), 224, chosen.images // 2),
        }
        results = {
            name: compare(shards, side, images, chosen.workers, chosen.repeats)
            for name, (shards, side, images) in sets.items()
        }
    for name, result in results.items():
        print(f"{name}: {result['images_per_second']} images/s, ours / webdataset = {result['ratio']} (goal >= {GOAL})")
    path = save("loader", {"workers": chosen.workers, "batch": BATCH, "goal": GOAL, "sets": results})
    print(path)
    return 0 if all(result["ratio"] >= GOAL for result in results.values()) else 1
