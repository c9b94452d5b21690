"""Which caption a sample gets: where captions stand, languages, several of them, and the draws."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from intern_trainer.config.load import load_config
from intern_trainer.data import build_train_data, pairs
from intern_trainer.data.captions import CaptionRules, caption, captions, record
from intern_trainer.data.decode import BadSample
from intern_trainer.data.views import Views
from intern_trainer.errors import ConfigErrors

from tests.unit.trainer.data.shards import ALONE, config, picture, write_shard

MANY = {"en": ["a cat", "the cat"], "de": ["eine Katze", " "], "fr": "un chat"}
TUX = "A tabby cat.\nde.utf8=Eine Katze.\npt_BR.utf8=Um gato.\nsr@latin.utf8=Mačka.\n"


def rules(**data: Any) -> CaptionRules:
    return CaptionRules.of(config("x", **data).data)


def choose(sample: dict[str, Any], seed: int | None = None, **data: Any) -> str:
    """The caption of a sample with this json, or with these members where they are bytes."""
    members = sample if isinstance(next(iter(sample.values())), bytes) else {"json": json.dumps(sample).encode()}
    return caption(members, record(members), rules(**data), seed)


def drawn(sample: dict[str, Any], draws: int = 400, **data: Any) -> Counter[str]:
    return Counter(choose(sample, seed, **data) for seed in range(draws))


def test_one_caption_needs_no_choice() -> None:
    assert drawn({"caption": "a cat", "title": "cat"}) == {"a cat": 400}
    assert choose({"txt": b"two lines\nof one caption"}) == "two lines\nof one caption"


def test_the_first_or_any_of_several() -> None:
    sample = {"captions": ["one", "two", " three "]}
    assert drawn(sample) == {"one": 400}
    found = drawn(sample, caption_choice="random")
    assert found.keys() == {"one", "two", "three"}
    assert min(found.values()) > 90
    assert choose(sample, None, caption_choice="random") == "one"
    assert [choose(sample, 7, caption_choice="random") for _ in range(2)] == [
        choose(sample, 7, caption_choice="random")
    ] * 2


def test_languages_by_weight() -> None:
    found = drawn({"captions": MANY}, languages={"de": 3, "en": 1})
    assert found.keys() == {"a cat", "eine Katze"}
    assert 70 < found["a cat"] < 130
    assert choose({"captions": MANY}, None, languages={"de": 3, "en": 1}) == "eine Katze"
    assert drawn({"captions": MANY}) == {"a cat": 400}
    assert drawn({"captions": MANY}, caption_choice="random").keys() == {"a cat", "the cat", "eine Katze", "un chat"}


def test_missing_languages_leave_their_weight_to_the_others() -> None:
    found = drawn({"captions": {"en": "cat", "it": "gatto"}}, languages=["de", "en", "it"])
    assert 150 < found["cat"] < 250
    assert found.total() == found["cat"] + found["gatto"]
    assert drawn({"captions": ["no language"]}, languages=["de"]) == {"no language": 400}
    with pytest.raises(BadSample, match=r"caption in en, it .*data\.languages is de"):
        choose({"captions": {"en": "cat", "it": "gatto"}}, 1, languages="de")


def test_a_key_for_each_language() -> None:
    keys = ["json.caption_{language}", "{language}.txt"]
    sample = {"caption_en": "cat", "caption_de": "Katze", "caption_fr": "chat"}
    assert drawn(sample, caption_keys=keys, languages=["de", "en"]).keys() == {"cat", "Katze"}
    members = {"en.txt": b"cat", "de.txt": b"Katze"}
    assert choose(members, None, caption_keys=keys, languages=["de", "en"]) == "Katze"
    assert rules(caption_keys=keys, languages=["de", "en"]).members == {"json", "de.txt", "en.txt"}


def test_translations_below_an_english_line() -> None:
    sample = {"txt": TUX.encode()}
    assert choose(sample) == "A tabby cat."
    assert captions(sample, {}, rules()) == {
        "en": ["A tabby cat."], "de": ["Eine Katze."], "pt_BR": ["Um gato."], "sr@latin": ["Mačka."],
    }  # fmt: skip
    assert choose(sample, None, languages="pt_BR") == "Um gato."


@pytest.mark.parametrize(
    ("value", "kind"),
    [(["", " "], "caption empty"), ([], "caption empty"), ({"en": ["x" * 30]}, "caption too long"), ([3], "missing")],
)
def test_nothing_that_can_be_used(value: Any, kind: str) -> None:
    with pytest.raises(BadSample) as error:
        choose({"captions": value}, 1, max_caption_chars=20)
    assert kind in error.value.kind
    assert choose({"captions": ["", "x" * 30, "good"]}, 1, max_caption_chars=20) == "good"


def test_the_reader_draws_anew_in_training_and_not_in_evaluation(tmp_path: Path) -> None:
    samples = [
        {"png": picture(n), "json": json.dumps({"captions": {"en": [f"a {n}", f"b {n}"], "de": f"c {n}"}}).encode()}
        for n in range(8)
    ]
    write_shard(tmp_path / "s.tar", samples)
    settings = config(f"{tmp_path}/s.tar", caption_choice="random", languages={"en": 1, "de": 1})

    def epochs(count: int) -> list[dict[str, str]]:
        batches = build_train_data(settings, ALONE, Views()).batches(0)
        found = [next(batches)[0] for _ in range(count)]
        return [dict(zip(batch.ids, batch.extras["caption"], strict=True)) for batch in found]

    found = epochs(3)
    assert found == epochs(3)
    assert found[0] != found[1] != found[2]
    assert {text[0] for epoch in found for text in epoch.values()} == {"a", "b", "c"}
    [batch] = pairs(list(settings.data.train), settings, ALONE)
    assert batch.extras["caption"] == [f"a {n}" for n in range(8)]
    [batch] = pairs(list(settings.data.train), settings, ALONE, language="de")
    assert batch.extras["caption"] == [f"c {n}" for n in range(8)]


def test_a_place_for_languages_without_languages(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"data.caption_keys has json\.c_\{language\}"):
        load_config(None, ["data.caption_keys=json.c_{language}"])
