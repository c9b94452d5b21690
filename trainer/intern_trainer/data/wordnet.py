"""Synonyms from WordNet's own database files, which are looked up in place: workers share them, and none loads them.

The files are those of WordNet 3.x: Debian's `wordnet-base` puts them at /usr/share/wordnet, NLTK's downloader at
nltk_data/corpora/wordnet. Their format: wndb(5WN), https://wordnet.princeton.edu/documentation/wndb5wn.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
_GRAMMAR = """
a all am an and any are as at be been being but by can could did do does done down for from had has have he her his
how i if in into is it its just may me might more most must my no not of off on one only or our out over shall she
should so some such than that the them then there they this those to too under up us very was we were what when where
which while who whom whose why will with would you your
"""
GRAMMAR = frozenset(_GRAMMAR.split())
"""Words whose entries in WordNet mean something else than a caption does by them (`a`: angstrom, `in`: indium)."""


@dataclass(frozen=True)
class WordNet:
    """One folder of database files: `index.noun`, `data.noun`, and so on."""

    folder: Path

    def missing(self) -> list[str]:
        """Names of the files that are not there."""
        return [name for name in _names() if not (self.folder / name).is_file()]

    def synonyms(self, word: str) -> tuple[str, ...]:
        """Of any sense and part of speech, sorted, lower case; none for words of grammar."""
        lemma = word.lower()
        return _synonyms(self.folder, lemma) if lemma.isalpha() and lemma not in GRAMMAR else ()


def _names() -> list[str]:
    return [f"{kind}.{part}" for part in PARTS_OF_SPEECH for kind in ("index", "data")]


@lru_cache(maxsize=2**16)
def _synonyms(folder: Path, lemma: str) -> tuple[str, ...]:
    found = {
        synonym.replace("_", " ").lower()
        for part in PARTS_OF_SPEECH
        for offset in _senses(_mapped(folder / f"index.{part}"), lemma.encode())
        for synonym in _members(_mapped(folder / f"data.{part}"), offset)
    }
    return tuple(sorted(found - {lemma}))


def _senses(index: mmap.mmap, lemma: bytes) -> list[int]:
    """Where the lemma's synonym sets begin in `data.*`: a binary search for its line."""
    low, high = 0, len(index)
    while low < high:  # both are starts of lines
        start = index.rfind(b"\n", low, (low + high) // 2) + 1 or low
        end = index.find(b"\n", start) + 1 or len(index)
        line = index[start:end]
        found = line.partition(b" ")[0]  # empty in the licence at the top, which comes before all words
        if found == lemma:
            fields = line.split()
            return [int(offset) for offset in fields[-int(fields[2]) :]]
        low, high = (end, high) if found < lemma else (low, start)
    return []


def _members(data: mmap.mmap, offset: int) -> Iterator[str]:
    fields = data[offset : data.find(b"\n", offset)].split()
    for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
        yield word.decode().partition("(")[0]  # adjectives may say where they stand: "galore(ip)"


@cache
def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
