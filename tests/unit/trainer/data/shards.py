"""Makes small shards and configurations for the tests of the readers."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intern_trainer.config.schema import Config
from intern_trainer.data import PlainText, Views
from intern_trainer.ranks import Ranks
from PIL import Image

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def picture(number: int = 0, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
    """Slanted stripes, so that each crop looks different."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([x * 7 + y * 3 + number * 37, x * 2 + y * 11 + number * 91, x * y + number], axis=-1) % 256
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def good(number: int) -> dict[str, bytes]:
    return {"png": picture(number), "txt": f"caption {number}".encode()}


def write_shard(path: Path, samples: list[dict[str, bytes]], first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"{first + number:06d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, counts: list[int]) -> str:
    """Shards of good samples; gives their brace range."""
    for shard, count in enumerate(counts):
        write_shard(folder / f"{shard:03d}.tar", [good(shard * 100 + n) for n in range(count)])
    return f"{folder}/{{000..{len(counts) - 1:03d}}}.tar"


def config(train: Any, **data: Any) -> Config:
    batch = data.pop("global_batch", 8)
    micro = data.pop("micro_batch", None)
    augment = {"crop_scale": (0.3, 1.0), "flip": 0.5}
    settings = {"lanes": 4, "shuffle_window": 8, "workers": 0, "augment": augment, **data}
    return Config.model_validate(
        {
            "model": {"image_size": 8},
            "data": {"train": train, **settings},
            "train": {"global_batch": batch, "micro_batch": micro, "seed": 3},
        }
    )


def count_words(captions: list[str]) -> torch.Tensor:
    """A tokenizer that is easy to check: length of the caption, last number in it."""
    return torch.tensor([[len(c), int(c.split()[-1]) if c.split()[-1].isdigit() else -1] for c in captions])


WORDS = Views(texts=PlainText(count_words))
