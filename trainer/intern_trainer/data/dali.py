"""JPEGs decoded, cropped and resized by NVIDIA DALI in the training process: on a GPU by nvJPEG, else on the CPU.

The loader processes then only read and draw. Which crop a sample gets is the same as with the other decoders, its
pixels are so to a few levels of 255 (DALI rounds elsewhere, and decodes in full size).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from intern_trainer.data.decode import BadSample
from intern_trainer.data.decoders import PillowPicture
from intern_trainer.data.transforms import Draw, whole
from intern_trainer.errors import DataError

THREADS = 4
"""Of DALI, for parsing and, without a GPU, decoding."""


class Encoded(NamedTuple):
    """A whole JPEG, and what is made of it. windows: int32 [views, 4], the left, top, width and height of each view in
    pixels of the picture. mirrored: one a view.
    """

    id: str
    content: bytes
    windows: np.ndarray
    mirrored: tuple[bool, ...]


def encoded(id: str, content: bytes, size: tuple[int, int], drawn: list[Draw]) -> Encoded:
    """What DALI is to make of a picture of this size."""
    windows = []
    for (left, top, right, bottom), _, _ in drawn:
        (x0, x1), (y0, y1) = whole(left, right, size[0]), whole(top, bottom, size[1])
        windows.append((x0, y0, x1 - x0, y1 - y0))
    return Encoded(id, content, np.array(windows, np.int32), tuple(draw.mirrored for draw in drawn))


class DaliViews:
    """Makes all views of up to `batch` pictures at once."""

    def __init__(self, size: int, views: int, batch: int, device: torch.device) -> None:
        from nvidia.dali import Pipeline, fn, types

        gpu = device.type == "cuda"
        place, self._views = "gpu" if gpu else "cpu", views
        self._pipeline = Pipeline(batch, THREADS, device.index or 0 if gpu else None, prefetch_queue_depth=1)
        with self._pipeline:
            jpeg = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1)
            # not turned upright by EXIF: the other decoders do not, and the windows are of the picture as it is stored
            picture_hwc = fn.decoders.image(
                jpeg, device="mixed" if gpu else "cpu", output_type=types.RGB, adjust_orientation=False
            )
            made = []
            for view in range(views):
                at, extent, mirrored = (
                    fn.external_source(name=f"{name}{view}", dtype=types.INT32, ndim=ndim)
                    for name, ndim in (("at", 1), ("extent", 1), ("mirrored", 0))
                )
                crop_hwc = fn.slice(picture_hwc, at, extent, axes=[1, 0], device=place)
                view_hwc = fn.resize(crop_hwc, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True)
                made.append(fn.flip(view_hwc, horizontal=mirrored))
            self._pipeline.set_outputs(*made)
        self._pipeline.build()

    def __call__(self, pictures: list[Encoded]) -> list[Tensor]:
        """uint8 [len(pictures), size, size, 3] on the device, one a view.

        Raises:
            DataError: one of them is broken.
        """
        feed = self._pipeline.feed_input
        feed("jpeg", [np.frombuffer(each.content, np.uint8) for each in pictures])
        for view in range(self._views):
            feed(f"at{view}", [each.windows[view, :2] for each in pictures])
            feed(f"extent{view}", [each.windows[view, 2:] for each in pictures])
            feed(f"mirrored{view}", [np.array(each.mirrored[view], np.int32) for each in pictures])
        try:
            outputs = self._pipeline.run()
        except RuntimeError as error:
            raise _broken(pictures, error) from error
        # a copy: DALI uses its memory again
        return [torch.from_dlpack(output.as_tensor()).clone() for output in outputs]


class Dali:
    """A pipeline for each size of batch and picture that comes up."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, int], DaliViews] = {}

    def views(self, size: int, views: int, batch: int, device: torch.device) -> DaliViews:
        key = size, views, batch
        if key not in self._made:
            self._made[key] = DaliViews(size, views, batch, device)
        return self._made[key]


def _broken(pictures: list[Encoded], error: RuntimeError) -> DataError:
    """Pillow tells which."""
    found = f"DALI cannot decode one of {len(pictures)} JPEGs: {error}"
    for each in pictures:
        try:
            PillowPicture(each.content, 1 << 62).pixels(1)
        except BadSample as bad:
            found = f"{each.id}: {bad.reason}"
            break
    return DataError(
        found,
        "with data.decoder=dali a JPEG that is broken within is found too late to be left out",
        "repair the shards (`intern-trainer data check` names each bad sample), or data.decoder=auto",
    )
