"""The pictures that the loaders are measured on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from intern_trainer.data import embedded
from litdata.streaming.writer import BinaryWriter
from PIL import Image

Samples = list[tuple[str, dict[str, bytes]]]


def photo_shards(folder: Path, shards: int = 4, samples: int = 500) -> list[Path]:
    """JPEGs of 512 pixels whose size in bytes is that of photographs (smooth colour with some noise), with captions."""
    random = np.random.default_rng(0)

    def photo(number: int) -> tuple[str, dict[str, bytes]]:
        coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((512, 512), Image.Resampling.BICUBIC), dtype=np.int16)
        picture = picture + random.integers(-12, 13, picture.shape, dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        words = " ".join(random.choice(["red", "house", "lake", "a", "dog", "on", "the", "old"], 9))
        return f"{number:05d}", {"jpg": buffer.getvalue(), "txt": words.encode()}

    return [_write(folder / f"{n:05d}.tar", [photo(s) for s in range(samples)]) for n in range(shards)]


def clip_art_shards(folder: Path) -> list[Path]:
    """The embedded training pictures, with their captions as text: open_clip takes no others."""
    written = []
    for shard in embedded.shards("train"):
        samples: Samples = []
        for key, members in read_samples(shard):
            caption = json.loads(members["json"])["caption"]
            samples.append((key, {"webp": members["webp"], "txt": caption.encode()}))
        written.append(_write(folder / shard.name, samples))
    return written


def read_samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key, and members by extension."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            found.setdefault(key, {})[extension] = content.read()
    yield from found.items()


def litdata_chunks(shards: list[Path], folder: Path) -> Path:
    """The samples of the shards in litdata's own format."""
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    number = 0
    for shard in shards:
        for _, members in read_samples(shard):
            (picture,) = (content for extension, content in members.items() if extension != "txt")
            writer[number] = {"picture": picture, "text": members["txt"].decode()}
            number += 1
    writer.done()
    writer.merge()
    return folder


def _write(path: Path, samples: Samples) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path
