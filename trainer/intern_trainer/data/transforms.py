"""Pictures to the model's size: random crops for training, one crop in the middle for evaluation.

Workers hand over 8-bit pictures (a quarter of the bytes); `normalise` makes floats of a whole batch, on the device that
trains.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate as resize

from intern_trainer.config.schema import Augment, Config
from intern_trainer.data import colours
from intern_trainer.data.colours import Colours
from intern_trainer.data.decoders import SHRINKS, Picture
from intern_trainer.data.order import mix
from intern_trainer.data.stages import Stages

Box = tuple[float, float, float, float]
TRIES = 20
"""Draws of a view that must overlap with the first one, before it takes the same place."""


class Draw(NamedTuple):
    """What was drawn for one view. box: where it lies in the whole picture, in pixels."""

    box: Box
    mirrored: bool
    colours: Colours


class TrainViews:
    """Random resized crop, flip and colours, `views` times with draws of their own that depend on the sample's seed
    alone.

    Drawn before the picture is decoded: a JPEG is decoded no larger than the crops need.
    """

    def __init__(self, size: int, augment: Augment, views: int = 1, overlap: float = 0.0) -> None:
        self.size, self.augment, self.views, self.overlap = size, augment, views, overlap

    def __call__(self, picture: Picture, seed: int) -> tuple[np.ndarray, ...]:
        """uint8 [size, size, 3], one a view.

        Raises:
            BadSample: the picture cannot be decoded.
        """
        return self.make(picture, self.draws(picture.size, seed), Stages())

    def make(self, picture: Picture, drawn: list[Draw], stages: Stages) -> tuple[np.ndarray, ...]:
        """The same, of what was drawn."""
        with stages.of("decode"):
            pixels = picture.pixels(self.shrink(drawn))
        with stages.of("transform"):
            scale = pixels.shape[1] / picture.size[0], pixels.shape[0] / picture.size[1]
            return tuple(self.view(pixels, scale, each) for each in drawn)

    def view(self, pixels: np.ndarray, scale: tuple[float, float], draw: Draw) -> np.ndarray:
        """Crop (to whole pixels), resize, flip, colours, as torchvision's functions make them.

        Args:
            pixels: uint8 [h, w, 3]. scale: its width and height over those of the whole picture.
        """
        left, right = whole(draw.box[0] * scale[0], draw.box[2] * scale[0], pixels.shape[1])
        top, bottom = whole(draw.box[1] * scale[1], draw.box[3] * scale[1], pixels.shape[0])
        crop_hwc = torch.from_numpy(np.ascontiguousarray(pixels[top:bottom, left:right]))
        # contiguous channels-last, so that torch takes its fast 8-bit path
        view = resize(crop_hwc.permute(2, 0, 1)[None], (self.size, self.size), mode="bicubic", antialias=True)
        view_hwc = view[0].permute(1, 2, 0).numpy()
        return colours.apply(np.ascontiguousarray(view_hwc[:, ::-1]) if draw.mirrored else view_hwc, draw.colours)

    def draws(self, size: tuple[int, int], seed: int) -> list[Draw]:
        """What is made of a picture of this size."""
        found: list[Draw] = []
        for number in range(1, self.views + 1):
            rng = random.Random(mix(seed, number))
            box = crop_box(size, self.augment.crop_scale, self.augment.crop_ratio, rng)
            for _ in range(TRIES):
                if not found or shared(found[0].box, box) >= self.overlap:
                    break
                box = crop_box(size, self.augment.crop_scale, self.augment.crop_ratio, rng)
            else:
                box = found[0].box
            found.append(Draw(box, rng.random() < self.augment.flip, colours.draw(self.augment, rng)))
        return found

    @staticmethod
    def boxes(size: tuple[int, int], drawn: list[Draw]) -> np.ndarray:
        """float32 [views, 4]: where the views of a picture of this size lie, as `Views.boxes` describes it."""
        width, height = size
        edges = [(r, t, left, b) if mirrored else (left, t, r, b) for (left, t, r, b), mirrored, _ in drawn]
        return np.array(edges, np.float32) / np.array([width, height, width, height], np.float32)

    def shrink(self, drawn: list[Draw]) -> int:
        """How many times smaller a JPEG may be decoded: each crop keeps at least as many pixels as its view has."""
        area = min((right - left) * (bottom - top) for (left, top, right, bottom), _, _ in drawn)
        return next(shrink for shrink in SHRINKS if shrink == 1 or area >= (shrink * self.size) ** 2)


class CentreCrop:
    """The shorter side to `size` (bicubic), then the middle in whole pixels: CLIP's evaluation transform.

    Pixel for pixel what transformers' CLIPImageProcessor makes with Pillow, so exported models see the same pictures.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray]:
        """uint8 [size, size, 3]."""
        width, height = picture.size
        short = min(width, height)
        width, height = self.size * width // short, self.size * height // short
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        return (np.asarray(resized.crop((left, top, left + self.size, top + self.size))),)


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


def whole(low: float, high: float, length: int) -> tuple[int, int]:
    """The interval in whole pixels of a side of this length: at least one."""
    first = min(round(low), length - 1)
    return first, max(first + 1, min(round(high), length))


def shared(a: Box, b: Box) -> float:
    """The area that two boxes have in common, over that of the smaller."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def normalise(
    parts_bhwc: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Parts of a batch, uint8 [b_i, h, w, 3], as one on `device`: float [b, 3, h, w] with channels-last strides,
    (x / 255 - mean) / std.
    """
    rows, (h, w, _) = [len(part) for part in parts_bhwc], parts_bhwc[0].shape[1:]
    # for each channel of each pixel of a line: a loop over three channels alone would be several times slower
    scale = _repeated([1 / (255 * s) for s in std], w, device)
    shift = _repeated([-m / s for m, s in zip(mean, std, strict=True)], w, device)
    lines = torch.empty(sum(rows), h, w * 3, device=device)
    for part, out in zip(parts_bhwc, lines.split(rows), strict=True):
        torch.addcmul(shift, out.copy_(part.flatten(2), non_blocking=True), scale, out=out)
    return lines.unflatten(2, (w, 3)).permute(0, 3, 1, 2)


def _repeated(values: Sequence[float], times: int, device: torch.device) -> Tensor:
    """[times * len(values)], filled on the device: copying from the host would wait for all that a GPU has to do."""
    return torch.stack([torch.full((times,), value, device=device) for value in values], dim=1).flatten()


def eval_transform(config: Config) -> Callable[[Image.Image], Tensor]:
    """RGB picture -> float [3, h, w], normalised: what one test sample goes through."""
    crop = CentreCrop(config.model.image_size)

    def transform(picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(crop(picture)))
        return normalise([pixels], config.data.mean, config.data.std, torch.device("cpu"))[0]

    return transform
