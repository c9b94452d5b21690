"""Scenes made of the embedded cut-outs: pictures whose classes, boxes and masks are known exactly.

A scene is a background that is made from its seed, and cut-outs of one split pasted onto it. Train and test scenes
never share a cut-out, because the splits do not. The same (split, seed, number) gives the same scene on every machine
with the same Pillow.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from intern_trainer.data import embedded
from intern_trainer.data.order import mix
from intern_trainer.data.transforms import shared

OPAQUE = 128
"""Alpha from which a pixel belongs to the object (of 255)."""
MAX_COVERED = 0.25
"""Share of the smaller of two boxes that the other may cover when a place is drawn."""
PLACES = 20
"""Draws of a place for a cut-out; one that fits nowhere stays away."""
CANDIDATES = 3
"""Cut-outs that are tried for each object: some fit nowhere, or are too faint to be seen at that size."""
CONTRAST = 90
"""Largest distance of a background's texture from its colour, of 255."""


@dataclass(frozen=True)
class CutOut:
    """A picture with its outline: `webp` has an alpha channel."""

    id: str
    webp: bytes
    caption: str
    category: int

    def picture(self) -> Image.Image:
        """RGBA."""
        return Image.open(io.BytesIO(self.webp), formats=["WEBP"]).convert("RGBA")


@dataclass(frozen=True)
class Layout:
    """What scenes are like.

    Attributes:
        side: of the square picture, pixels.
        objects: least and largest number of cut-outs.
        extent: least and largest length of a cut-out's longer side, as a share of `side`.
    """

    side: int
    objects: tuple[int, int] = (1, 4)
    extent: tuple[float, float] = (0.25, 0.6)


@dataclass(frozen=True)
class Scene:
    """One scene; objects in the order in which they were pasted, later ones in front.

    Attributes:
        pixels: uint8 [side, side, 3].
        classes: int64 [n], numbers into `embedded.categories()`.
        boxes: float32 [n, 4], left, top, right, bottom of what is visible, in pixels.
        masks: bool [n, side, side], the visible pixels of each object; no pixel belongs to two.
        ids: of the cut-outs.
        caption: the cut-outs' captions, joined.
    """

    pixels: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    ids: list[str]
    caption: str

    def semantic(self) -> np.ndarray:
        """uint8 [side, side]: 0 background, 1 + class elsewhere."""
        labels = np.zeros(self.pixels.shape[:2], np.uint8)
        for mask, category in zip(self.masks, self.classes, strict=True):
            labels[mask] = category + 1
        return labels


@cache
def cut_outs(split: str) -> tuple[CutOut, ...]:
    """All cut-outs of a split of the embedded set.

    Raises:
        ConfigError: there is no such split.
    """
    classes = {name: number for number, name in enumerate(embedded.categories())}
    found = []
    for shard in embedded.shards(split):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in sorted(name for name in members if name.endswith(".webp")):
            record = json.loads(members[name.replace(".webp", ".json")])
            key = f"{shard.stem}/{name.removesuffix('.webp')}"
            found.append(CutOut(key, members[name], record["caption"], classes[record["category"]]))
    return tuple(found)


def scene(split: str, layout: Layout, seed: int, number: int) -> Scene:
    """Scene `number` of a split; it holds at least one object."""
    rng = random.Random(mix(seed, embedded.SPLITS.index(split), number))
    pixels = background(layout.side, rng)
    wanted = rng.randint(*layout.objects)
    pasted: list[CutOut] = []
    boxes: list[tuple[int, int, int, int]] = []
    masks: list[np.ndarray] = []
    for cut_out in rng.sample(cut_outs(split), CANDIDATES * wanted):
        if len(pasted) == wanted:
            break
        picture = _scaled(cut_out.picture(), layout, rng)
        place = _place(picture.size, boxes, layout.side, rng)
        rgba = np.asarray(picture, np.float32)
        if place is None or rgba[..., 3].max() < OPAQUE:
            continue
        alpha = np.zeros((layout.side, layout.side, 1), np.float32)
        colours = np.zeros((layout.side, layout.side, 3), np.float32)
        left, top, right, bottom = place
        alpha[top:bottom, left:right], colours[top:bottom, left:right] = rgba[..., 3:] / 255, rgba[..., :3]
        pixels = pixels * (1 - alpha) + colours * alpha
        mask = alpha[..., 0] * 255 >= OPAQUE
        masks = [*(earlier & ~mask for earlier in masks), mask]
        pasted.append(cut_out)
        boxes.append(place)
    seen = [n for n, mask in enumerate(masks) if mask.any()]
    return Scene(
        pixels.round().astype(np.uint8),
        np.array([pasted[n].category for n in seen], np.int64),
        np.array([_box(masks[n]) for n in seen], np.float32).reshape(-1, 4),
        np.array([masks[n] for n in seen], bool).reshape(-1, layout.side, layout.side),
        [pasted[n].id for n in seen],
        "; ".join(pasted[n].caption for n in seen),
    )


def background(side: int, rng: random.Random) -> np.ndarray:
    """float32 [side, side, 3], 0 to 255: a colour with smooth blots of a random size, in each channel its own."""
    colour = np.array([rng.uniform(0, 255) for _ in range(3)], np.float32)
    cells = rng.choice([2, 3, 4, 8, 16])
    channels = []
    for _ in range(3):
        blots = np.array([[rng.uniform(-1, 1) for _ in range(cells)] for _ in range(cells)], np.float32)
        channels.append(np.asarray(Image.fromarray(blots).resize((side, side), Image.Resampling.BICUBIC)))
    return np.clip(colour + rng.uniform(0, CONTRAST) * np.stack(channels, axis=2), 0, 255)


def _scaled(picture: Image.Image, layout: Layout, rng: random.Random) -> Image.Image:
    longest = rng.uniform(*layout.extent) * layout.side
    factor = longest / max(picture.size)
    width, height = (min(layout.side, max(2, round(length * factor))) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _place(
    size: tuple[int, int], taken: list[tuple[int, int, int, int]], side: int, rng: random.Random
) -> tuple[int, int, int, int] | None:
    """A box of this size inside the scene that hides no other and is not lost in one; None if no draw finds any."""
    width, height = size
    for _ in range(PLACES):
        left, top = rng.randint(0, side - width), rng.randint(0, side - height)
        box = (left, top, left + width, top + height)
        if all(shared(box, other) <= MAX_COVERED for other in taken):
            return box
    return None


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
