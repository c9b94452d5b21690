"""What `data stats` counts: a tally of each piece, added up. All quantities are whole numbers counted by value, so
that sums are exact, quantiles too, and memory does not grow with samples (only the hashes do, 32 bytes a sample)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from intern_trainer.config.schema import Config
from intern_trainer.data import captions, decode
from intern_trainer.data.decode import BadSample
from intern_trainer.data.tools.duplicates import SIDE, caption_hash, picture_hash
from intern_trainer.data.tools.pieces import Member, Piece, every_caption, read
from intern_trainer.text import text_tokenizer

HASHED = 100_000_000
"""Duplicates are looked for among this many samples, the first ones: 3 GB of hashes, 5 GB more to compare them."""
LANGUAGE_KEYS = ("language", "lang", "LANGUAGE")
"""Where a sample's json may say the language of a caption that does not."""
LONGEST = 1024
"""Captions are counted up to this many tokens."""


@dataclass
class Tally:
    """Counts of some samples. `hashes` holds arrays [n, 4] uint64: number of the shard, of the sample in it, hash of
    the picture, hash of the caption."""

    samples: int = 0
    bytes: int = 0
    members: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    short_side: Counter[int] = field(default_factory=Counter)
    long_side: Counter[int] = field(default_factory=Counter)
    aspect_percent: Counter[int] = field(default_factory=Counter)
    """Width over height in hundredths."""
    picture_bytes: Counter[int] = field(default_factory=Counter)
    """In KiB, rounded up."""
    captions: Counter[int] = field(default_factory=Counter)
    """Captions a picture."""
    characters: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    hashes: list[np.ndarray] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name, theirs in vars(other).items():
            if isinstance(theirs, Counter):
                getattr(self, name).update(theirs)
        if self.samples < HASHED:
            self.hashes += other.hashes
        self.samples += other.samples
        self.bytes += other.bytes


def tally(config: Config, numbered: tuple[int, Piece]) -> Tally:
    """Count one piece, given with the number of its shard.

    Raises:
        DataError: the shard cannot be read.
    """
    number, piece = numbered
    total, rows, texts = Tally(), [], list[str]()
    for place, member in zip(piece.samples, read(piece, config.data), strict=True):
        total.samples += 1
        total.bytes += sum(member.sizes.values())
        total.members.update(member.sizes.keys())
        try:
            picture, found = _picture(member, config, total), _captions(member, config, total)
        except BadSample as bad:
            total.bad[bad.kind] += 1
            continue
        texts += found
        rows.append((number, place, picture, caption_hash(found[0])))
    total.characters.update(len(text) for text in texts)
    total.tokens.update(_token_counts(texts, config))
    total.hashes.append(np.array(rows, dtype=np.uint64).reshape(-1, 4))
    return total


def _picture(member: Member, config: Config, total: Tally) -> int:
    """Count size and form; gives the perceptual hash."""
    content = decode.picture_bytes(member.content)
    image = decode.open_image(content, config.data.max_pixels)
    (width, height), kind = image.size, str(image.format)  # before a JPEG is decoded smaller
    picture = decode.load_rgb(image, (SIDE, SIDE))
    total.formats[kind] += 1
    total.short_side[min(width, height)] += 1
    total.long_side[max(width, height)] += 1
    total.aspect_percent[round(100 * width / height)] += 1
    total.picture_bytes[-(-len(content) // 1024)] += 1
    return picture_hash(picture)


def _captions(member: Member, config: Config, total: Tally) -> list[str]:
    """Count captions and languages; gives the captions."""
    record = captions.record(member.content)
    by_language = every_caption(member, config.data)
    said = next((record[key] for key in LANGUAGE_KEYS if isinstance(record.get(key), str)), captions.UNSAID)
    for language, texts in by_language.items():
        if language or said:
            total.languages[language or said] += len(texts)
    every = [text for texts in by_language.values() for text in texts]
    total.captions[len(every)] += 1
    return every


def _token_counts(texts: list[str], config: Config) -> Iterable[int]:
    """Tokens of each, with start and end."""
    if not texts:
        return []
    tokenizer = text_tokenizer(config.model.text.model_copy(update={"context_length": LONGEST}))
    return ((tokenizer(texts) == tokenizer.eot_token_id).int().argmax(dim=1) + 1).tolist()
