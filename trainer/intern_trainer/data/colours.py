"""Random colours and blur of a training picture, as MoCo v2 (arXiv 2003.04297) and DeCLIP (arXiv 2110.05208) have them.

The draws are ours, so that they depend on the sample's seed alone; what is done with them is torchvision's, on Pillow
pictures: their 8-bit arithmetic is faster on a CPU than that on tensors.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as F

from intern_trainer.config.schema import Augment

ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


class Colours(NamedTuple):
    """What one view goes through. jitter: (which of `ADJUST`, how much) in this order. sigma: of the blur; 0: none."""

    jitter: tuple[tuple[int, float], ...] = ()
    grey: bool = False
    sigma: float = 0.0


def draw(augment: Augment, rng: random.Random) -> Colours:
    jitter: list[tuple[int, float]] = []
    if rng.random() < augment.jitter_probability:
        for which, strength in enumerate(augment.jitter):
            middle = 0.0 if ADJUST[which] is F.adjust_hue else 1.0
            if strength:
                jitter.append((which, rng.uniform(middle - strength, middle + strength)))
        rng.shuffle(jitter)
    grey = rng.random() < augment.grey
    sigma = rng.uniform(*augment.blur_sigma) if rng.random() < augment.blur else 0.0
    return Colours(tuple(jitter), grey, sigma)


def apply(pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """uint8 [h, w, 3] -> the same, in these colours."""
    if colours == Colours():
        return pixels
    picture = Image.fromarray(pixels)
    for which, amount in colours.jitter:
        picture = ADJUST[which](picture, amount)
    if colours.grey:
        picture = F.rgb_to_grayscale(picture, num_output_channels=3)
    if colours.sigma:
        picture = picture.filter(ImageFilter.GaussianBlur(colours.sigma))
    return np.array(picture)
