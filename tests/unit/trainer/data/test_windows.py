"""Where the views of a picture lie: what the boxes say is what the pixels show."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from intern_trainer.config.schema import Augment
from intern_trainer.data.decoders import open_picture
from intern_trainer.data.transforms import TrainViews, shared
from intern_trainer.data.views import Views
from PIL import Image

from tests.unit.trainer.data.shards import WORDS, config, write_shards
from tests.unit.trainer.data.test_train import ALONE, TrainData, catalogues, read

AUGMENT = Augment(crop_scale=(0.2, 0.7), crop_ratio=(0.6, 1.6), flip=0.5)


def ruler(width: int, height: int) -> bytes:
    """A PNG. Red is the place from left to right, green that from top to bottom: 0 to 255 over the picture."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    buffer = io.BytesIO()
    Image.fromarray((np.stack([x, y, 0 * x], axis=2) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_boxes_say_where_each_pixel_of_a_view_comes_from() -> None:
    side, picture = 16, ruler(200, 120)
    views = TrainViews(side, AUGMENT, views=2)
    mirrored = 0
    for seed in range(30):
        for pixels, (left, top, right, bottom) in zip(
            views(open_picture(picture, 10**6), seed),
            views.boxes((200, 120), views.draws((200, 120), seed)),
            strict=True,
        ):
            mirrored += left > right
            at = (np.arange(side) + 0.5) / side
            inside = slice(2, -2)  # the filter of the resize reaches beyond the box, and not beyond the picture
            assert np.abs(pixels[..., 0] / 255 - (left + (right - left) * at)[None])[inside, inside].max() < 0.012
            assert np.abs(pixels[..., 1] / 255 - (top + (bottom - top) * at)[:, None])[inside, inside].max() < 0.012
    assert 15 < mirrored < 45


def test_further_views_overlap_with_the_first_as_much_as_asked() -> None:
    loose, tight = (TrainViews(16, AUGMENT, views=3, overlap=overlap) for overlap in (0.0, 0.6))
    least = dict.fromkeys((loose, tight), 1.0)
    for seed in range(60):
        for views in least:
            first, *others = (draw.box for draw in views.draws((200, 120), seed))
            least[views] = min(least[views], *(shared(first, box) for box in others))
        assert loose.draws((200, 120), seed)[0] == tight.draws((200, 120), seed)[0]
    assert least[loose] < 0.3
    assert least[tight] >= 0.6


def test_a_batch_holds_the_boxes_of_its_views(tmp_path: Path) -> None:
    settings = config([{"location": write_shards(tmp_path, [12])}], augment=AUGMENT.model_dump())
    views = Views(images=2, texts=WORDS.texts, overlap=0.5, boxes=True)
    [[batch]] = read(TrainData(settings, ALONE, views, catalogues(list(settings.data.train), None, ALONE)), 0, 1)
    boxes = batch.tensors["boxes"]
    assert boxes.shape == (len(batch), 2, 4)
    assert boxes.dtype == torch.float32
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[..., 3] > boxes[..., 1]).all()
    assert not torch.equal(boxes[:, 0], boxes[:, 1])
