"""Pictures to the model's size: random crops for training, one crop in the middle for evaluation.

Workers hand over 8-bit pictures (a quarter of the bytes); `normalise` makes floats of a whole batch, on the device that
trains.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from intern_trainer.config.schema import Augment, Config

Box = tuple[float, float, float, float]


class TrainCrop:
    """Random resized crop and flip, with all draws from the generator passed in."""

    def __init__(self, size: int, augment: Augment) -> None:
        self.size, self.augment = size, augment

    def __call__(self, picture: Image.Image, rng: random.Random) -> np.ndarray:
        """uint8 [size, size, 3]."""
        box = crop_box(picture.size, self.augment.crop_scale, self.augment.crop_ratio, rng)
        picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box, reducing_gap=2.0)
        if rng.random() < self.augment.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(picture)

    def least(self) -> tuple[int, int]:
        """A JPEG may be decoded down to this: the smallest crop then still has `size` pixels a side, about."""
        side = math.ceil(self.size / math.sqrt(max(self.augment.crop_scale[0], 0.01)))
        return side, side


class CentreCrop:
    """The shorter side to `size` (bicubic), then the middle in whole pixels: CLIP's evaluation transform.

    Pixel for pixel what transformers' CLIPImageProcessor makes with Pillow, so exported models see the same pictures.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image, rng: random.Random | None = None) -> np.ndarray:
        """uint8 [size, size, 3]."""
        width, height = picture.size
        short = min(width, height)
        width, height = self.size * width // short, self.size * height // short
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))

    def least(self) -> None:
        """Evaluation decodes in full."""
        return None


def crop_box(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random) -> Box:
    """A box of random area and aspect inside the picture, in pixels; the largest in the middle if ten tries fail."""
    width, height = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, height * aspect), min(height, width / aspect)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def normalise(pixels_bhwc: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [b, h, w, 3] -> float [b, 3, h, w] with channels-last strides: (x / 255 - mean) / std."""
    device = pixels_bhwc.device
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return torch.addcmul(shift, pixels_bhwc.float(), scale).permute(0, 3, 1, 2)


def train_transform(config: Config) -> Callable[[Image.Image, random.Random], Tensor]:
    """(RGB picture, generator) -> float [3, h, w], normalised: what one training sample goes through."""
    return _as_tensor(TrainCrop(config.model.image_size, config.data.augment), config)


def eval_transform(config: Config) -> Callable[..., Tensor]:
    """RGB picture -> float [3, h, w], normalised: what one test sample goes through."""
    return _as_tensor(CentreCrop(config.model.image_size), config)


def _as_tensor(crop: TrainCrop | CentreCrop, config: Config) -> Callable[..., Tensor]:
    def transform(picture: Image.Image, rng: random.Random | None = None) -> Tensor:
        pixels = torch.from_numpy(np.array(crop(picture, rng or random.Random(0))))
        return normalise(pixels[None], config.data.mean, config.data.std)[0]

    return transform
