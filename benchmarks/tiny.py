"""A shard that is quickly made and decoded, for measurements of everything else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def tiny_shard(path: Path, samples: int, picture_bytes: int = 0) -> Path:
    """`samples` pictures of 32 pixels (JPEG), padded behind their end to `picture_bytes`, and captions."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).save(buffer, "JPEG")
    picture = buffer.getvalue().ljust(picture_bytes, b"\0")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(samples):
            for extension, content in (("jpg", picture), ("txt", b"a caption %d" % number)):
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path
