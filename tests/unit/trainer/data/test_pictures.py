"""Decoding and transforms."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from intern_trainer.data import decode
from intern_trainer.data.decoders import open_picture
from intern_trainer.data.transforms import CentreCrop, TrainViews, crop_box, eval_transform, normalise
from PIL import Image

from tests.unit.trainer.data.shards import config


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_white_paper(kind: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    pixels = np.asarray(decode.picture(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})), 1000))
    assert pixels[4, 1].tolist() == [255, 0, 0]
    assert pixels[4, 6].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = np.full((6, 6), 128, np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    found = decode.picture(encode(image, "JPEG" if mode == "CMYK" else "PNG"), 1000)
    assert found.mode == "RGB"
    if mode != "1":
        assert np.asarray(found).mean() == pytest.approx(128, abs=3)


def test_a_jpeg_is_decoded_no_larger_than_needed() -> None:
    content = encode(Image.effect_noise((800, 600), 50).convert("RGB"), "JPEG")
    assert decode.picture(content, 10**6).size == (800, 600)
    assert decode.picture(content, 10**6, least=(100, 100)).size == (200, 150)


def test_crops_stay_inside_and_keep_area_and_ratio() -> None:
    rng = random.Random(0)
    for size in ((100, 80), (30, 200), (300, 20)):
        for _ in range(200):
            left, top, right, bottom = crop_box(size, (0.3, 0.8), (0.75, 1.3333), rng)
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            assert 0.74 < (right - left) / (bottom - top) < 1.34


def test_a_training_picture_is_a_function_of_its_seed() -> None:
    views = TrainViews(16, config("x", augment={"crop_scale": (0.3, 1.0), "flip": 0.5}).data.augment, 2)
    content = encode(Image.effect_noise((40, 30), 80).convert("RGB"), "PNG")
    (first, second), again, (other, _) = (views(open_picture(content, 10**6), seed) for seed in (1, 1, 2))
    assert first.shape == second.shape == (16, 16, 3)
    assert np.array_equal(first, again[0])
    assert np.array_equal(second, again[1])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_normalise_is_the_textbook_formula() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    pixels = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    found = normalise([pixels[:1], pixels[1:]], mean, std, torch.device("cpu"))
    expected = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_public_transform_gives_normalised_tensors() -> None:
    settings = config("x")
    white = Image.new("RGB", (31, 20), "white")
    expected = [(1 - m) / s for m, s in zip(settings.data.mean, settings.data.std, strict=True)]
    found = eval_transform(settings)(white)
    assert found.shape == (3, 8, 8)
    assert found.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_centre_is_the_centre() -> None:
    image = Image.new("RGB", (90, 30), "black")
    image.paste((255, 255, 255), (30, 0, 60, 30))
    assert CentreCrop(30)(image)[0].min() == 255
    assert CentreCrop(10)(image)[0].mean() > 250
