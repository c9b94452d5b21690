"""The embedded pictures: what the package promises of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import pytest
from intern_trainer.data import embedded, pairs
from intern_trainer.data.embedded import titles
from intern_trainer.data.embedded.titles import Work
from intern_trainer.errors import ConfigError
from PIL import Image

from tests.unit.trainer.data.shards import ALONE, config


@pytest.fixture(scope="module")
def records() -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for split in embedded.SPLITS:
        found[split] = []
        for shard in embedded.shards(split):
            with tarfile.open(shard) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    if member.name.endswith(".json"):
                        found[split].append(json.loads(content.read()))
    return found


def test_sizes_and_splits(records: dict[str, list[dict]]) -> None:
    assert len(records["train"]) > 1500
    share = len(records["test"]) / sum(len(part) for part in records.values())
    assert 0.08 < share < 0.15
    assert sum(shard.stat().st_size for split in embedded.SPLITS for shard in embedded.shards(split)) < 6.5e6
    for part in records.values():
        assert {record["category"] for record in part} == set(embedded.categories())
    assert len(embedded.categories()) == 20


def test_no_title_is_in_two_splits(records: dict[str, list[dict]]) -> None:
    groups = {split: {titles.group(record["title"]) for record in part} for split, part in records.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    captions = Counter(record["caption"] for record in records["test"])
    assert max(captions.values()) == 1  # else retrieval would have two right answers


def test_every_picture_says_where_it_is_from(records: dict[str, list[dict]]) -> None:
    for part in records.values():
        for record in part:
            assert record["licence"] == "public domain"
            assert record["source"].startswith("openclipart/")
            assert record["caption"].startswith(record["title"])
            assert not titles.is_refused(Work(record["source"], record["title"], record["keywords"]))


def test_pictures_keep_their_alpha() -> None:
    (shard,) = embedded.shards("validation")
    with tarfile.open(shard) as tar:
        pictures = [tar.extractfile(m) for m in tar if m.name.endswith(".webp")]
        modes = Counter(Image.open(io.BytesIO(p.read())).mode for p in pictures if p is not None)
    assert modes["RGBA"] > 0.8 * modes.total()


def test_the_evaluation_reader_gives_all_with_their_categories() -> None:
    settings = config("embedded:train")
    batches = list(pairs(list(config("embedded:test").data.train), settings, ALONE))
    categories = [category for batch in batches for category in batch.extras["category"]]
    assert len(categories) == len({id for batch in batches for id in batch.ids})
    assert set(categories) == set(embedded.categories())


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ConfigError, match="embedded:tests"):
        embedded.shards("tests")


@pytest.mark.parametrize(
    ("work", "title", "category"),
    [
        (Work("animals/mammals/horses/cavallo_02", "Cavallo"), "Cavallo", "animals"),
        (Work("animals/birds/gull_01", "Gull 12"), "Gull", "birds"),
        (Work("food/fruit/pear", "Clipart by Nicu Buculei - apple"), "pear", "fruit"),
        (Work("computer/icons/x", "Part of the Flat Icon Collection (Wed Aug 25)"), None, None),
        (Work("shapes/stars/star_94pt", "gramastar"), "gramastar", None),
        (Work("signs_and_symbols/map_symbols/aiga_toilets_", "AIGA_Symbol_Signs"), "toilets", "signs"),
        (Work("people/42", "42"), None, "people"),
    ],
)
def test_titles_and_categories(work: Work, title: str | None, category: str | None) -> None:
    assert titles.title(work) == title
    assert titles.category(work.path) == category


def test_captions_are_title_and_common_keywords() -> None:
    frequency = {"animal": 9, "horse": 3, "cavallo": 1}
    assert titles.caption("Cavallo", ["animal", "cavallo", "horse"], frequency) == "Cavallo, animal, horse"
    assert titles.group("Apple 1") == titles.group("apple #2")
    assert titles.is_refused(Work("a/tux_01", "Nice bird"))
    assert titles.is_refused(Work("a/b", "Xbox controller"))
    assert not titles.is_refused(Work("a/fordable", "Fordable river"))
