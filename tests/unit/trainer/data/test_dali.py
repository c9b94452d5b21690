"""DALI makes the views that the other decoders make, in the same rows; here without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from intern_trainer.batch import Batch
from intern_trainer.config.checks import check
from intern_trainer.config.schema import Augment
from intern_trainer.data import Views, build_train_data
from intern_trainer.data.dali import DaliViews, encoded
from intern_trainer.data.decoders import PillowPicture
from intern_trainer.data.transforms import TrainViews
from intern_trainer.errors import DataError
from PIL import ExifTags, Image

from tests.unit.trainer.data.shards import ALONE, WORDS, config, good, write_shard
from tests.unit.trainer.data.test_decoders import LIMIT, jpeg

LEVELS = 4
"""Of 255: how far DALI's pixels may be from ours."""
MOCO = {"policy": "moco"}


def test_dali_without_what_it_needs_or_with_colours_is_refused() -> None:
    found = [str(error) for error in check(config("x", decoder="dali", augment=MOCO))]
    assert any("data.decoder is dali and data.augment (policy moco) changes colours" in error for error in found)
    assert not any("changes colours" in str(error) for error in check(config("x", decoder="dali")))


class Whole(PillowPicture):
    """DALI decodes in full size."""

    def pixels(self, shrink: int) -> np.ndarray:
        return super().pixels(1)


def test_views_are_those_of_the_other_decoders() -> None:
    pytest.importorskip("nvidia.dali", reason="no GPU here: DALI is installed on GPU machines alone")
    views = TrainViews(32, Augment(crop_scale=(0.2, 1.0), flip=0.5), views=2)
    on_its_side = Image.Exif()
    on_its_side[ExifTags.Base.Orientation] = 6  # the other decoders leave it as it lies
    files = [jpeg(), jpeg((100, 240), exif=on_its_side), jpeg(mode="L"), jpeg(progressive=True)]
    dali = DaliViews(32, 2, 4, torch.device("cpu"))
    for seed, files_now in ((0, files), (10, files[:2])):  # also fewer than the batch
        asked, expected = [], []
        for number, content in enumerate(files_now):
            picture = Whole(content, LIMIT)
            asked.append(encoded("", content, picture.size, views.draws(picture.size, seed + number)))
            expected.append(views(picture, seed + number))
        for found, ours in zip(dali(asked), zip(*expected, strict=True), strict=True):
            assert np.abs(found.numpy().astype(int) - np.stack(ours).astype(int)).max() <= LEVELS


def first_batch(path: Path, decoder: str, **data: object) -> Batch:
    settings = config(str(path), decoder=decoder, **data)
    train_data = build_train_data(settings, ALONE, Views(images=2, texts=WORDS.texts, boxes=True))
    (batch,) = next(train_data.batches(0))
    train_data.close()
    return batch.to(ALONE.device)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_same_samples_in_the_same_rows(tmp_path: Path, workers: int) -> None:
    """JPEGs of DALI among PNGs, and a JPEG without an end, which is the workers' to judge."""
    pytest.importorskip("nvidia.dali", reason="no GPU here: DALI is installed on GPU machines alone")
    jpegs = [{"jpg": jpeg((40 + n, 30)), "txt": f"caption {n}".encode()} for n in range(9)]
    samples = [good(n) if n % 3 == 0 else jpegs[n] for n in range(9)] + [{"jpg": jpeg()[:-2], "txt": b"endless 9"}]
    path = write_shard(tmp_path / "s.tar", samples)
    ours, dali = (first_batch(path, decoder, workers=workers, max_bad_fraction=1.0) for decoder in ("auto", "dali"))
    assert dali.ids == ours.ids
    assert torch.equal(dali.tensors["text"], ours.tensors["text"])
    assert torch.equal(dali.tensors["boxes"], ours.tensors["boxes"])
    for name in ("image", "image2"):
        assert dali.tensors[name].is_contiguous(memory_format=torch.channels_last)
        levels = (dali.tensors[name] - ours.tensors[name]).abs() * 255 * 0.28
        assert levels.median() < 1  # the others were decoded smaller
        assert levels.mean() < 8


def test_a_broken_jpeg_is_an_error_of_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, all ranks learn of it together, before the step that it was in is applied."""
    pytest.importorskip("nvidia.dali", reason="no GPU here: DALI is installed on GPU machines alone")

    def broken(self: DaliViews, pictures: list) -> None:
        raise DataError(f"one of {len(pictures)} is broken")

    monkeypatch.setattr(DaliViews, "__call__", broken)
    path = write_shard(tmp_path / "s.tar", [{"jpg": jpeg(), "txt": f"caption {n}".encode()} for n in range(8)])
    data = build_train_data(config(str(path), decoder="dali"), ALONE, WORDS)
    batches = data.batches(0)
    (batch,) = next(batches)
    assert batch.to(ALONE.device).tensors["image"].isfinite().all()
    with pytest.raises(DataError, match="one of 8 is broken"):
        next(batches)


def test_a_broken_jpeg_is_named() -> None:
    pytest.importorskip("nvidia.dali", reason="no GPU here: DALI is installed on GPU machines alone")
    views, whole = TrainViews(32, Augment()), jpeg()
    drawn = views.draws((203, 141), 0)
    scanless = whole[: whole.index(b"\xff\xda")] + whole[-2:]
    asked = [encoded(name, content, (203, 141), drawn) for name, content in (("s/0", whole), ("s/1", scanless))]
    dali = DaliViews(32, 1, 2, torch.device("cpu"))
    with pytest.raises(DataError, match="s/1: picture corrupt"):
        dali(asked)
    assert len(dali(asked[:1])[0]) == 1
