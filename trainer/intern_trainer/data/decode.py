"""From a sample's bytes to its picture, or to the reason why it cannot be used."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

PICTURES = ("jpg", "jpeg", "png", "webp")
JPEG = b"\xff\xd8"
"""What a JPEG file begins with."""


class BadSample(Exception):  # (it is no failure of the program)
    """A sample that is skipped, counted and named. `kind` is the short word that the counts go by."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def picture_bytes(members: dict[str, bytes]) -> bytes:
    for extension in PICTURES:
        if extension in members:
            return members[extension]
    others = ", ".join(sorted(members)) or "other members"
    raise BadSample("picture missing", f"has no picture ({', '.join(PICTURES)}), only {others}")


def picture(content: bytes, max_pixels: int, least: tuple[int, int] | None = None) -> Image.Image:
    """An RGB picture; transparency becomes white paper.

    Args:
        content: a JPEG, PNG or WebP file. max_pixels: larger ones are refused by their header, before they are decoded.
        least: a JPEG may be decoded smaller (a half, a quarter, an eighth) as long as it keeps this size.
    """
    return load_rgb(open_image(content, max_pixels), least)


def open_image(content: bytes, max_pixels: int) -> Image.Image:
    """The header alone."""
    with _bad_if_broken():
        try:
            image = Image.open(io.BytesIO(content), formats=_formats(content))
        except UnidentifiedImageError as error:
            reason = f"picture corrupt: {len(content)} bytes that are no JPEG, PNG or WebP"
            raise BadSample("picture corrupt", reason) from error
        width, height = image.size
        if width * height >= max_pixels:
            reason = f"picture of {width} x {height} pixels; data.max_pixels is {max_pixels}"
            raise BadSample("picture too large", reason)
        return image


def load_rgb(image: Image.Image, least: tuple[int, int] | None = None) -> Image.Image:
    """What `open_image` opened, decoded; arguments as for `picture`."""
    with _bad_if_broken():
        if least is not None and image.format == "JPEG":
            image.draft("RGB", least)
        return _on_white(image)


@contextmanager
def _bad_if_broken() -> Iterator[None]:
    """What Pillow raises on a broken file becomes a BadSample."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise BadSample("picture too large", f"picture beyond data.max_pixels ({error})") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
    ) as error:  # what Pillow's plugins raise on broken files
        raise BadSample("picture corrupt", f"picture corrupt: {error}") from error


def _formats(content: bytes) -> tuple[str, ...]:
    """By the first bytes: names lie, and Pillow's own guess tries one plug-in after the other."""
    known = {"JPEG": content[:2] == JPEG, "PNG": content[:4] == b"\x89PNG", "WEBP": content[8:12] == b"WEBP"}
    return tuple(name for name, fits in known.items() if fits)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        return page
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: PIL's own conversion would clip it to white
        image = image.convert("F").point(lambda value: value / 257)
        return image.convert("L").convert("RGB")
    return image.convert("RGB")
