"""The emoji pair's build: who is in which split, captions, and pictures. What `make emoji` fetches is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from intern_trainer.data import pairs
from intern_trainer.data.emoji import build
from intern_trainer.data.emoji.build import Emoji, Fluent, read_emoji, samples, split
from PIL import Image

from tests.unit.trainer.data.shards import ALONE, config


def entry(hexcode: str, label: str, **more: Any) -> dict[str, Any]:
    return {"hexcode": hexcode, "label": label, "group": 0, **more}


@pytest.fixture
def emojibase(tmp_path: Path) -> Path:
    for name in build.LANGUAGES:
        entries = [
            entry("1F600", f"grin {name}", tags=["face", f"grin {name}", "happy"]),
            entry("1F468-200D-1F680", f"man astronaut {name}"),
            entry("1F1E9-1F1EA", "flag", group=build.FLAGS),
            entry("1F3FB", "light skin", group=build.COMPONENTS),
            {"hexcode": "1F1E6", "label": "letter"},
        ]
        if name == "zh":
            del entries[0]
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(json.dumps(entries))
    return tmp_path


def test_names_and_keywords_in_several_languages_without_flags_and_parts(emojibase: Path) -> None:
    found = read_emoji(emojibase)
    assert [one.hexcode for one in found] == ["1F600", "1F468-200D-1F680"]
    assert found[0].captions["de"] == ["grin de, face, happy", "grin de"]
    assert found[0].captions.keys() == set(build.LANGUAGES) - {"zh"}
    assert found[1].captions["fr"] == ["man astronaut fr", "man astronaut fr"]
    assert found[1].text == "\U0001f468\u200d\U0001f680"


def test_variants_have_one_base() -> None:
    def base(hexcode: str) -> str:
        return Emoji(hexcode, {}).base

    assert base("1F468-200D-1F680") == base("1F469-1F3FD-200D-1F680") == base("1F9D1-200D-1F680") != base("1F680")
    assert base("1F3C3-200D-2640-FE0F-200D-27A1-FE0F") == base("1F3C3")
    assert base("2640-FE0F") == "2640-FE0F"  # the sign itself


def test_held_out_emoji_are_nowhere_else() -> None:
    many = [Emoji(f"{code:X}{tail}", {}) for code in range(0x1F600, 0x1F900) for tail in ("", "-200D-2640-FE0F")]
    found = {name: {one.base for one in emoji} for name, emoji in split(many).items()}
    assert not found["heldout"] & found["train"]
    assert not found["validation"] & found["test"]
    assert found["validation"] | found["test"] == found["train"]
    assert len(found["heldout"]) / 768 == pytest.approx(build.HELD_OUT, abs=0.03)
    assert len(found["validation"]) / len(found["train"]) == pytest.approx(build.VALIDATION, abs=0.03)


def test_shards_that_the_readers_take(tmp_path: Path) -> None:
    (tmp_path / "fluent").mkdir()
    drawing = Image.new("RGBA", (256, 200), (0, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (100, 50, 150, 150))
    drawing.save(tmp_path / "fluent" / "2640-fe0f.webp", lossless=True)
    emoji = [
        Emoji("2640", {"en": ["a sign, female", "a sign"], "de": ["Zeichen"]}),
        Emoji("1F600", {"en": ["no file"]}),
    ]
    drawn = list(samples(emoji, Fluent(tmp_path / "fluent"), "somewhere"))
    assert len(drawn) == 1
    build.write_shard(tmp_path / "s.tar", drawn)
    settings = config(f"{tmp_path}/s.tar", caption_keys="json.captions", languages="en")
    [batch] = pairs(list(settings.data.train), settings, ALONE)
    assert batch.extras["caption"] == ["a sign, female"]
    pixels = batch.tensors["image"][0]
    assert pixels[0, 4, 4] > pixels[1, 4, 4]  # red in the middle
    assert pixels[1, 0, 0] == pixels[1].max()  # on white
