"""What a task wants of each sample: how many pictures, and which text tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

TextViews = Callable[[list[str], list[int]], dict[str, Tensor]]
"""(captions, seeds of their samples) -> tensors by name, one row a caption. Called in the loader processes; its draws
depend on the seeds alone: `order.mix(seed, 4)` and further are its own."""


@dataclass(frozen=True)
class Views:
    """What `build_train_data` makes of each sample.

    Attributes:
        images: independent random views of the picture: tensors `image`, `image2`, ... of a batch.
        texts: makes the text tensors; None: the batches hold pictures alone.
        captions: views of the caption among them.
        overlap: least share of the smaller crop that each further view has in common with the first one.
        boxes: whether batches say where the views lie: `boxes`, float [b, images, 4], the left, top, right and bottom
            edge of each view as places in the picture, 0 to 1. In a mirrored view left is larger than right.
    """

    images: int = 1
    texts: TextViews | None = None
    captions: int = 1
    overlap: float = 0.0
    boxes: bool = False

    def image_names(self) -> list[str]:
        return ["image", *(f"image{number}" for number in range(2, self.images + 1))]


@dataclass(frozen=True)
class PlainText:
    """The caption as it is, or `drop`ped to fewer tokens: `text`, int64 [b, l]."""

    tokenize: Callable[[list[str]], Tensor]
    drop: Callable[[Tensor, list[int]], Tensor] | None = None

    def __call__(self, captions: list[str], seeds: list[int]) -> dict[str, Tensor]:
        text = self.tokenize(captions)
        return {"text": self.drop(text, seeds) if self.drop else text}
