"""Pixels for training: a JPEG no larger than its crops need, by the fastest decoder that is installed.

Both decoders are libjpeg-turbo and give the same pixels. What simplejpeg cannot take or finds broken goes to Pillow, so
that it is Pillow's word alone which samples are bad.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from PIL import features

from intern_trainer.data import decode

SHRINKS = (8, 4, 2, 1)
"""A JPEG's discrete cosines can be turned into that many times fewer pixels a side, at little cost."""

END = b"\xff\xd9"
"""What a JPEG file ends with."""


class Picture(Protocol):
    """A picture whose header is read. size: width and height of the whole picture."""

    size: tuple[int, int]

    def pixels(self, shrink: int) -> np.ndarray:
        """Writable uint8 [h, w, 3]; of a JPEG 1 / `shrink` of the pixels a side (rounded up).

        Raises:
            BadSample: it cannot be decoded.
        """
        ...


class PillowPicture:
    """Any format that `decode` knows.

    Raises:
        BadSample: no picture, or one that is too large.
    """

    def __init__(self, content: bytes, max_pixels: int) -> None:
        self._image = decode.open_image(content, max_pixels)
        self.size = self._image.size

    def pixels(self, shrink: int) -> np.ndarray:
        width, height = self.size
        return np.array(decode.load_rgb(self._image, (width // shrink, height // shrink)))


class TurboPicture:
    """A JPEG through simplejpeg, which does without a copy and some of the checks. ValueError: not for it.

    Attributes:
        complete: it has an end.
    """

    def __init__(self, content: bytes, max_pixels: int) -> None:
        from simplejpeg import decode_jpeg_header

        height, width, colours, _ = decode_jpeg_header(content)
        if colours not in ("Gray", "YCbCr", "RGB") or width * height >= max_pixels:
            raise ValueError("for Pillow")
        self.size, self._content, self._max_pixels = (width, height), content, max_pixels
        self.complete = content.endswith(END)

    def pixels(self, shrink: int) -> np.ndarray:
        from simplejpeg import decode_jpeg

        width, height = (-(-side // shrink) for side in self.size)
        try:
            return decode_jpeg(self._content, "RGB", min_width=width, min_height=height)
        except ValueError:
            return PillowPicture(self._content, self._max_pixels).pixels(shrink)


def choose(decoder: str) -> str:
    """The decoder that `data.decoder` comes to on this machine."""
    if decoder == "auto":
        return "simplejpeg" if find_spec("simplejpeg") else "pillow"
    return decoder


def describe(decoder: str) -> str:
    """Name and versions of a chosen decoder: other versions may round pixels differently."""
    if decoder == "dali":
        from nvidia import dali

        return f"dali {dali.__version__}"
    pillow = f"pillow {metadata.version('pillow')} (libjpeg {features.version('jpg')})"
    return f"simplejpeg {metadata.version('simplejpeg')}, {pillow}" if decoder == "simplejpeg" else pillow


def open_picture(content: bytes, max_pixels: int, decoder: str = "pillow") -> Picture:
    """Reads the header.

    Raises:
        BadSample: no picture, or one that is too large.
    """
    if decoder != "pillow" and content[:2] == decode.JPEG:
        try:
            return TurboPicture(content, max_pixels)
        except ValueError:
            pass
    return PillowPicture(content, max_pixels)
