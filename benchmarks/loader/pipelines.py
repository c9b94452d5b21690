"""Four ways to make the same batches."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import litdata
import open_clip_train.data
import torch
import webdataset as wds
from intern_trainer.config.schema import Config
from intern_trainer.data import PlainText, Views, build_train_data
from intern_trainer.ranks import Ranks
from intern_zoo.text import tokenizer
from open_clip.transform import AugmentationCfg, image_transform
from PIL import Image
from torch import Tensor
from webdataset.tariterators import tar_file_expander

CONTEXT = 24
Loaded = tuple[int, Mapping[str, float]]
"""Samples of a batch; the seconds that it took by stage, where the loader tells."""


@dataclass(frozen=True)
class Pipeline:
    """What is asked of each loader. chunks: the shards' samples in litdata's format."""

    shards: list[Path]
    chunks: Path
    side: int
    workers: int
    batch: int

    @property
    def config(self) -> Config:
        return Config.model_validate(
            {
                "model": {"image_size": self.side},
                "data": {"train": [{"location": [str(s) for s in self.shards]}], "workers": self.workers, "lanes": 16},
                "train": {"global_batch": self.batch},
            }
        )

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """open_clip's for training: torchvision's random crop and normalisation of Pillow pictures."""
        data = self.config.data
        crop = AugmentationCfg(scale=data.augment.crop_scale)  # aspect ratio: 3/4 to 4/3, as ours
        return image_transform(self.side, is_train=True, mean=data.mean, std=data.std, aug_cfg=crop)


def ours(asked: Pipeline) -> Iterator[Loaded]:
    views = Views(texts=PlainText(tokenizer(CONTEXT)))
    data = build_train_data(asked.config, Ranks(0, 1, 0, torch.device("cpu")), views)
    try:
        for (batch,) in data.batches(0):
            made = batch.to(torch.device("cpu"))
            yield len(made), made.seconds
    finally:
        data.close()


def open_clip(asked: Pipeline) -> Iterator[Loaded]:
    """`open_clip_train` with --dataset-type webdataset --dataset-resampled."""
    # open_clip_train is written for webdataset <= 0.2.86, which marked no end of a shard
    open_clip_train.data.tar_file_expander = partial(tar_file_expander, eof_value=None)
    names = ",".join(path.stem for path in asked.shards)
    arguments = Namespace(
        train_data=f"{asked.shards[0].parent}/{{{names}}}.tar", train_num_samples=10**8, dataset_resampled=True,
        train_data_upsampling_factors=None, seed=0, batch_size=asked.batch, world_size=1, workers=asked.workers,
    )  # fmt: skip
    info = open_clip_train.data.get_wds_dataset(
        arguments, asked.transform(), is_train=True, tokenizer=tokenizer(CONTEXT)
    )
    for image, _ in info.dataloader:
        yield len(image), {}


def webdataset(asked: Pipeline) -> Iterator[Loaded]:
    """The pipeline of webdataset's documentation: resampled shards, shuffle buffer, batches made in the workers."""
    transform, tokenize = asked.transform(), tokenizer(CONTEXT)

    def sample(found: dict[str, Any]) -> tuple[Tensor, Tensor]:
        picture = next(found[e] for e in ("jpg", "webp") if e in found)
        return transform(picture), tokenize([found["txt"]])[0]

    shards = [str(shard) for shard in asked.shards]
    dataset = wds.WebDataset(shards, resampled=True, shardshuffle=False, empty_check=False)
    pipeline = dataset.shuffle(2048, initial=asked.batch).decode("pilrgb").map(sample).batched(asked.batch)
    for image, _ in torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=asked.workers):
        yield len(image), {}


class Chunks(litdata.StreamingDataset):
    """Pairs of litdata's chunks, made ready by the same transform."""

    def __init__(self, asked: Pipeline) -> None:
        super().__init__(str(asked.chunks), shuffle=True)
        self.prepare, self.tokenize = asked.transform(), tokenizer(CONTEXT)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        found = super().__getitem__(index)
        picture = Image.open(io.BytesIO(found["picture"])).convert("RGB")
        return self.prepare(picture), self.tokenize([found["text"]])[0]


def litdata_chunks(asked: Pipeline) -> Iterator[Loaded]:
    loader = litdata.StreamingDataLoader(
        Chunks(asked),
        batch_size=asked.batch,
        num_workers=asked.workers,
        drop_last=True,
        persistent_workers=asked.workers > 0,
    )
    while True:
        for image, _ in loader:
            yield len(image), {}


PIPELINES = {"ours": ours, "open_clip": open_clip, "webdataset": webdataset, "litdata": litdata_chunks}
