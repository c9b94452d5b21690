"""Build the emoji shards from what `make emoji` fetched.

    python -m intern_trainer.data.emoji.build NotoColorEmoji.ttf FLUENT/assets EMOJIBASE --out data/emoji

train        Noto's pictures of seven eighths of the emoji
validation   Fluent's pictures of some of the trained emoji, to watch a run and choose by
test         Fluent's pictures of the other trained emoji: known captions in a drawing style never seen
heldout      Fluent's pictures of the emoji that are in no other split, under no name: open vocabulary

An emoji and its variants (skin, sex, age, direction) are always in the same split; flags and skin tones are left out.
The same input and Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, features

from intern_trainer.data.embedded.build import write_shard
from intern_trainer.errors import EnvironmentFault

LANGUAGES = ("en", "de", "es", "fr", "ja", "zh")
SIDE = 112
FONT_SIZE, GLYPH = 109, (136, 128)
"""The size that the font's bitmaps are made for, and theirs in pixels."""
COMPONENTS, FLAGS = 2, 9
"""emojibase's numbers of groups that are left out."""
HELD_OUT, VALIDATION = 1 / 8, 1 / 8
SHARDS = {"train": 4, "validation": 1, "test": 1, "heldout": 1}
_VARIANTS = {
    **dict.fromkeys(["FE0F", "200D", "2640", "2642", "27A1", *(f"1F3F{tone}" for tone in "BCDEF")], ""),
    **dict.fromkeys(["1F468", "1F469", "1F474", "1F475", "1F466", "1F467", "1F9D2", "1F9D3"], "1F9D1"),
}
"""Code points that make a variant of another emoji: joiners, sexes, direction, skins; men, women and children."""


@dataclass(frozen=True)
class Emoji:
    """captions: by language, label and keywords first, then the label alone."""

    hexcode: str
    captions: dict[str, list[str]]

    @property
    def base(self) -> str:
        """The same for all variants of an emoji."""
        points = [_VARIANTS.get(point, point) for point in self.hexcode.split("-")]
        return "-".join(point for point in points if point) or self.hexcode

    @property
    def text(self) -> str:
        return "".join(chr(int(point, 16)) for point in self.hexcode.split("-"))


def read_emoji(emojibase: Path) -> list[Emoji]:
    """All but flags and components, in emojibase's order."""
    by_language = {
        name: {entry["hexcode"]: entry for entry in json.loads((emojibase / name / "data.json").read_text("utf-8"))}
        for name in LANGUAGES
    }
    return [
        Emoji(code, {name: _captions(entries[code]) for name, entries in by_language.items() if code in entries})
        for code, entry in by_language["en"].items()
        if entry.get("group") not in (None, COMPONENTS, FLAGS)
    ]


def split(emoji: list[Emoji]) -> dict[str, list[Emoji]]:
    """Each split's emoji; those of `train` are those of `validation` and `test` together."""
    found: dict[str, list[Emoji]] = {name: [] for name in SHARDS}
    for one in sorted(emoji, key=lambda one: _hash(one.hexcode)):
        if _share(f"held out {one.base}") < HELD_OUT:
            found["heldout"].append(one)
            continue
        found["train"].append(one)
        found["validation" if _share(f"validation {one.base}") < VALIDATION else "test"].append(one)
    return found


class Noto:
    """Google's drawings, from the font.

    Raises:
        EnvironmentFault: Pillow cannot join code points to one glyph.
    """

    def __init__(self, font: Path) -> None:
        if not features.check("raqm"):
            raise EnvironmentFault(
                "Pillow was built without Raqm", "emoji of several code points need it", "pip install pillow's wheel"
            )
        self._font = ImageFont.truetype(str(font), FONT_SIZE)

    def draw(self, emoji: Emoji) -> Image.Image | None:
        """None where the font has no such glyph."""
        left, top, right, bottom = self._font.getbbox(emoji.text)
        if (right - left, bottom - top) != GLYPH:
            return None
        page = Image.new("RGBA", GLYPH, (0, 0, 0, 0))
        ImageDraw.Draw(page).text((-left, -top), emoji.text, font=self._font, embedded_color=True)
        return page if page.getchannel("A").getbbox() else None


class Fluent:
    """Microsoft's drawings, from the files of npm's package."""

    def __init__(self, assets: Path) -> None:
        # names differ in where they write the sign that asks for colours
        self._files = {path.stem.replace("-fe0f", ""): path for path in sorted(assets.glob("*.webp"))}

    def draw(self, emoji: Emoji) -> Image.Image | None:
        """None where there is no such file."""
        path = self._files.get(emoji.hexcode.lower().replace("-fe0f", ""))
        return None if path is None else Image.open(path).convert("RGBA")


def samples(emoji: list[Emoji], style: Noto | Fluent, source: str) -> Iterator[dict[str, bytes]]:
    """WebP and json of each emoji that the style has."""
    for one in emoji:
        picture = style.draw(one)
        if picture is not None:
            record: dict[str, Any] = {"captions": one.captions, "hexcode": one.hexcode, "source": source}
            yield {"webp": _encode(picture), "json": json.dumps(record, ensure_ascii=False).encode()}


def build(font: Path, fluent: Path, emojibase: Path, out: Path) -> dict[str, int]:
    """Write `out/<split>-0000n.tar`; gives the number of pictures of each split."""
    styles: dict[str, tuple[Noto | Fluent, str]] = {
        "train": (Noto(font), "Noto Color Emoji"),
        "test": (Fluent(fluent), "Fluent 3D"),
    }
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, emoji in split(read_emoji(emojibase)).items():
        drawn = list(samples(emoji, *styles.get(name, styles["test"])))
        for shard in range(SHARDS[name]):
            write_shard(out / f"{name}-{shard:05d}.tar", drawn[shard :: SHARDS[name]])
        counts[name] = len(drawn)
    return counts


def _captions(entry: dict[str, Any]) -> list[str]:
    words = [word for word in entry.get("tags", []) if word != entry["label"]]
    return [", ".join([entry["label"], *words]), entry["label"]]


def _encode(picture: Image.Image) -> bytes:
    """On white paper, square."""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (SIDE, SIDE), "white")
    page.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2), picture)
    buffer = io.BytesIO()
    page.save(buffer, "WEBP", quality=85, method=4)
    return buffer.getvalue()


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(_hash(text)[:8], 16) / 16**8


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument("fluent", type=Path, help="folder of Fluent's WebP files")
    parser.add_argument("emojibase", type=Path, help="folder of emojibase-data")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    counts = build(chosen.font, chosen.fluent, chosen.emojibase, chosen.out)
    print(", ".join(f"{name}: {count} pictures" for name, count in counts.items()), f"in {chosen.out}")


if __name__ == "__main__":
    main()
