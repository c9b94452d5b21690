"""Both decoders give the same pixels, and the same word on broken files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from intern_trainer.data.decode import BadSample
from intern_trainer.data.decoders import PillowPicture, TurboPicture, choose, describe, open_picture
from intern_trainer.data.transforms import TrainViews
from PIL import Image

from tests.unit.trainer.data.shards import config

pytest.importorskip("simplejpeg")
LIMIT = 10**7


def jpeg(size: tuple[int, int] = (203, 141), mode: str = "RGB", **options: object) -> bytes:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = np.stack([np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 5), np.cos(x * y / 900)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    buffer = io.BytesIO()
    image = Image.fromarray((128 + 55 * waves + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 90}),
        ("RGB", {"quality": 40, "subsampling": "4:2:0", "progressive": True}),
        ("RGB", {"subsampling": "4:4:4", "keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_the_same_pixels(mode: str, options: dict, shrink: int) -> None:
    content = jpeg(mode=mode, **options)
    pillow, turbo = (open_picture(content, LIMIT, decoder) for decoder in ("pillow", "simplejpeg"))
    assert isinstance(turbo, PillowPicture if mode == "CMYK" else TurboPicture)
    assert turbo.size == pillow.size == (203, 141)
    found, expected = turbo.pixels(shrink), pillow.pixels(shrink)
    assert found.shape == expected.shape == (-(-141 // shrink), -(-203 // shrink), 3)
    assert np.array_equal(found, expected)
    assert found.flags.writeable
    assert expected.flags.writeable


def verdict(content: bytes, decoder: str, limit: int = LIMIT) -> tuple[str, str] | np.ndarray:
    try:
        return open_picture(content, limit, decoder).pixels(1)
    except BadSample as error:
        return error.kind, error.reason


def test_the_same_word_on_broken_files() -> None:
    whole = jpeg()
    middle = len(whole) // 2
    broken = {
        "cut short": whole[:middle],
        "header alone": whole[:100],
        "no JPEG": b"\xff\xd8" + b"x" * 500,
        "overwritten": whole[:middle] + bytes(200) + whole[middle + 200 :],
        "longer": whole + b"tail",
    }
    for name, content in broken.items():
        pillow, turbo = (verdict(content, decoder) for decoder in ("pillow", "simplejpeg"))
        assert np.array_equal(pillow, turbo), name
    assert verdict(whole, "simplejpeg", limit=1000) == verdict(whole, "pillow", limit=1000)
    assert verdict(whole, "simplejpeg", limit=1000)[0] == "picture too large"


def test_a_jpeg_is_decoded_no_larger_than_its_crops_need() -> None:
    augment = config("x", augment={"crop_scale": (0.04, 1.0)}).data.augment
    views = TrainViews(48, augment, views=2)
    shrinks = {}
    for seed in range(40):
        drawn = views.draws((640, 480), seed)
        smallest = min((right - left) * (bottom - top) for (left, top, right, bottom), _, _ in drawn)
        shrink = shrinks[seed] = views.shrink(drawn)
        assert shrink == 1 or smallest / shrink**2 >= 48**2
        assert shrink == 8 or smallest / (2 * shrink) ** 2 < 48**2
    assert len(set(shrinks.values())) > 1
    assert views.shrink(views.draws((20, 10), 0)) == 1


def test_smaller_pixels_make_nearly_the_same_view() -> None:
    """The crop of a JPEG at half its size, against the same crop of the whole."""

    class Whole(PillowPicture):
        def pixels(self, shrink: int) -> np.ndarray:
            return super().pixels(1)

    buffer = io.BytesIO()
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((512, 384), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    views = TrainViews(64, config("x", augment={"crop_scale": (0.5, 1.0), "flip": 0.5}).data.augment)
    for seed in range(10):
        (small,), (large,) = (
            views(kind(buffer.getvalue(), LIMIT), seed)[0].astype(int)[None] for kind in (PillowPicture, Whole)
        )
        assert np.abs(small - large).mean() < 4  # the crop's edges are whole pixels of the smaller picture


def test_the_choice_is_named() -> None:
    assert choose("auto") == "simplejpeg"
    assert choose("pillow") == "pillow"
    assert describe("pillow").startswith("pillow ")
    assert describe("simplejpeg").startswith("simplejpeg ")
