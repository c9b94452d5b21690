"""Scenes: the same by seed, exact in boxes and masks, and never of a cut-out that another split has."""

from __future__ import annotations

import hashlib

import numpy as np
from intern_trainer.data.scenes import Layout, Scene, cut_outs, scene

LAYOUT = Layout(96)


def scenes(split: str, seed: int = 0, count: int = 24) -> list[Scene]:
    return [scene(split, LAYOUT, seed, number) for number in range(count)]


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    for one, again, other in zip(scenes("train"), scenes("train"), scenes("train", seed=1), strict=True):
        assert np.array_equal(one.pixels, again.pixels)
        assert np.array_equal(one.masks, again.masks)
        assert one.ids == again.ids
        assert not np.array_equal(one.pixels, other.pixels)


def test_splits_share_no_cut_out() -> None:
    digests = {}
    for split in ("train", "validation", "test"):
        digests[split] = {hashlib.sha256(cut_out.webp).hexdigest() for cut_out in cut_outs(split)}
        known = {cut_out.id for cut_out in cut_outs(split)}
        assert all(set(found.ids) <= known for found in scenes(split, count=4))
    assert len(digests["train"]) > 1500
    assert not digests["train"] & (digests["test"] | digests["validation"])
    assert not digests["test"] & digests["validation"]


def test_boxes_and_masks_are_of_what_is_visible() -> None:
    counts = set()
    for found in scenes("test"):
        counts.add(len(found.classes))
        assert len(found.classes) == len(found.boxes) == len(found.masks) == len(found.ids)
        assert found.masks.sum(axis=0).max() == 1  # no pixel belongs to two
        for mask, box in zip(found.masks, found.boxes.astype(int), strict=True):
            left, top, right, bottom = box
            assert mask.sum() == mask[top:bottom, left:right].sum() > 0
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
        labels = found.semantic()
        assert np.array_equal(labels > 0, found.masks.any(axis=0))
        assert set(np.unique(labels[labels > 0]) - 1) == set(found.classes.tolist())
    assert counts == {1, 2, 3, 4}


def test_an_object_shows_its_own_colours_and_the_background_its_own() -> None:
    layout = Layout(64, objects=(1, 1), extent=(0.9, 0.9))
    alone = scene("test", layout, 0, 3)
    [cut_out] = [one for one in cut_outs("test") if one.id == alone.ids[0]]
    [box] = alone.boxes.astype(int)
    colours = np.asarray(cut_out.picture().resize((box[2] - box[0], box[3] - box[1])), np.float32)
    inside = colours[..., 3] == 255
    shown = alone.pixels[box[1] : box[3], box[0] : box[2]].astype(np.float32)
    assert np.abs(shown - colours[..., :3])[inside].mean() < 12
    assert np.abs(shown - colours[..., :3])[colours[..., 3] == 0].mean() > 25
