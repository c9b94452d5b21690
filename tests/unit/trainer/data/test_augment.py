"""Augmentation: what torchvision makes of the same draws, draws as often as asked, and no others'."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from intern_trainer.config.schema import Augment, Config
from intern_trainer.data import colours
from intern_trainer.data.colours import ADJUST, Colours
from intern_trainer.data.decoders import PillowPicture, open_picture
from intern_trainer.data.transforms import TrainViews, whole
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tests.unit.trainer.data.shards import picture

MOCO = Augment.model_validate({"policy": "moco"})


def test_a_view_is_torchvisions_crop_resize_and_flip() -> None:
    content = picture(3, (150, 97))
    views = TrainViews(24, Augment(crop_scale=(0.2, 1.0), flip=0.5), views=2)
    pixels_chw = torch.from_numpy(PillowPicture(content, 10**6).pixels(1)).permute(2, 0, 1)
    mirrored = 0
    for seed in range(20):
        drawn = views.draws((150, 97), seed)
        for found, draw in zip(views(open_picture(content, 10**6), seed), drawn, strict=True):
            left, top, right, bottom = (round(edge) for edge in draw.box)
            expected = F.resized_crop(
                pixels_chw, top, left, bottom - top, right - left, [24, 24], InterpolationMode.BICUBIC, antialias=True
            )
            expected = F.horizontal_flip(expected) if draw.mirrored else expected
            mirrored += draw.mirrored
            assert np.array_equal(found, expected.permute(1, 2, 0).numpy())
    assert 8 < mirrored < 32


def test_whole_pixels_stay_inside() -> None:
    assert whole(1.4, 5.6, 10) == (1, 6)
    assert whole(9.7, 10.0, 10) == (9, 10)
    assert whole(3.1, 3.3, 10) == (3, 4)


def test_colours_are_torchvisions_in_the_order_drawn() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    rng, expected_chw = random.Random(0), torch.from_numpy(pixels).permute(2, 0, 1)
    drawn = next(d for d in (colours.draw(MOCO, rng) for _ in range(100)) if d.jitter and not d.grey and not d.sigma)
    assert {which for which, _ in drawn.jitter} == {0, 1, 2, 3}
    for which, amount in drawn.jitter:
        expected_chw = ADJUST[which](expected_chw, amount)
    found = colours.apply(pixels, drawn)
    # Pillow rounds to 8 bits after each step, and hue to 8 bits
    assert np.abs(found.astype(int) - expected_chw.permute(1, 2, 0).numpy().astype(int)).mean() < 3
    assert np.abs(found.astype(int) - pixels.astype(int)).mean() > 6
    grey = colours.apply(pixels, Colours(grey=True))
    assert (grey == grey[..., :1]).all()
    assert colours.apply(pixels, Colours(sigma=1.5)).astype(float).std() < 0.5 * pixels.astype(float).std()
    assert colours.apply(pixels, Colours()) is pixels


def test_draws_come_as_often_and_as_far_as_asked() -> None:
    rng = random.Random(1)
    drawn = [colours.draw(MOCO, rng) for _ in range(2000)]
    assert np.mean([bool(d.jitter) for d in drawn]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([d.grey for d in drawn]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([d.sigma > 0 for d in drawn]) == pytest.approx(0.5, abs=0.04)
    for which, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]):
        amounts = [amount for d in drawn for index, amount in d.jitter if index == which]
        assert low <= min(amounts) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(amounts) <= high
    sigmas = [d.sigma for d in drawn if d.sigma]
    assert 0.1 <= min(sigmas) < 0.15
    assert 1.9 < max(sigmas) <= 2.0
    assert len({tuple(which for which, _ in d.jitter) for d in drawn}) == 25  # every order, and none


def test_draws_leave_the_global_generators_alone_and_do_not_ask_them() -> None:
    views, content = TrainViews(16, MOCO, views=2), picture(5, (60, 40))
    first = views(open_picture(content, 10**6), 7)
    random.seed(1)
    torch.manual_seed(1)
    state = random.getstate(), torch.get_rng_state()
    again = views(open_picture(content, 10**6), 7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])


def test_a_policy_fills_in_what_is_not_given() -> None:
    assert (MOCO.crop_scale, MOCO.flip, MOCO.jitter_probability) == ((0.2, 1.0), 0.5, 0.8)
    mixed = Augment.model_validate({"policy": "moco", "flip": 0.0})
    assert mixed == MOCO.model_copy(update={"flip": 0.0})
    assert Augment().jitter_probability == Augment().blur == Augment().grey == 0
    data = Config.model_validate({"data": {"augment": mixed.model_dump()}}).data
    assert data.augment == mixed  # as it is read back from a run's folder
