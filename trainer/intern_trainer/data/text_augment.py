"""What DeCLIP (arXiv 2110.05208) makes of a caption: another wording of it, and tokens to be guessed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from intern_zoo.declip import NOTHING
from torch import Tensor

from intern_trainer.data.order import mix
from intern_trainer.data.wordnet import WordNet

CHANGED = 0.1
"""Share of a caption's words that one operation changes (EDA's alpha)."""
MASK, OTHER = 0.8, 0.1
"""Shares of the chosen tokens that become the mask, and another word; the rest stay as they are (BERT, 1810.04805)."""


@dataclass(frozen=True)
class DeclipTexts:
    """Captions to the text views of DeCLIP; each row depends on its caption and seed alone.

    Attributes:
        tokenize: captions to ids [b, l]: start, words, end, filled up.
        start, end: ids of the tokens at both ends; start may be None. words: size of the vocabulary; the mask's id.
        rate: share of the words that are to be guessed.
        wordnet: where synonyms come from; None: words are swapped and left out, not replaced.
    """

    tokenize: Callable[[list[str]], Tensor]
    start: int | None
    end: int
    words: int
    rate: float = 0.15
    wordnet: WordNet | None = None

    def __call__(self, captions: list[str], seeds: list[int]) -> dict[str, Tensor]:
        """int64 [b, l]: `text`, the caption with masked tokens; `text_labels`, what they were, else NOTHING; `text2`,
        the caption in another wording."""
        draws = [random.Random(mix(seed, 4)) for seed in seeds]
        text_bl = self.tokenize(captions).clone()
        rewritten = [reword(caption, rng, self.wordnet) for caption, rng in zip(captions, draws, strict=True)]
        labels_bl = torch.full_like(text_bl, NOTHING)
        for ids_l, labels_l, rng in zip(text_bl.numpy(), labels_bl.numpy(), draws, strict=True):
            self._mask(ids_l, labels_l, rng)
        return {"text": text_bl, "text_labels": labels_bl, "text2": self.tokenize(rewritten)}

    def _mask(self, ids_l, labels_l, rng: random.Random) -> None:  # type: ignore[no-untyped-def]  # numpy rows, in place
        for place, word in enumerate(ids_l.tolist()):
            if word == self.end:
                return
            if word == self.start or rng.random() >= self.rate:
                continue
            labels_l[place] = word
            kind = rng.random()
            if kind < MASK:
                ids_l[place] = self.words
            elif kind < MASK + OTHER:
                ids_l[place] = self._any_word(rng)

    def _any_word(self, rng: random.Random) -> int:
        """Never an end of a text: the text feature is read at the first end token."""
        while (word := rng.randrange(self.words)) in (self.start, self.end):
            pass
        return word


def reword(caption: str, rng: random.Random, wordnet: WordNet | None = None) -> str:
    """One operation of EDA (arXiv 1901.11196), drawn at random: words replaced by synonyms, swapped, or left out."""
    words = caption.split()
    operation = rng.choice(("swap", "drop", "replace") if wordnet else ("swap", "drop"))
    if operation == "replace" and wordnet:
        words = _replaced(words, rng, wordnet)
    elif operation == "swap":
        words = _swapped(words, rng)
    else:
        words = [word for word in words if rng.random() >= CHANGED] or words
    return " ".join(words)


def _some(words: list[str]) -> int:
    return max(1, round(CHANGED * len(words)))


def _swapped(words: list[str], rng: random.Random) -> list[str]:
    words = list(words)
    if len(words) > 1:
        for _ in range(_some(words)):
            a, b = rng.sample(range(len(words)), 2)
            words[a], words[b] = words[b], words[a]
    return words


def _replaced(words: list[str], rng: random.Random, wordnet: WordNet) -> list[str]:
    words, left = list(words), _some(words)
    for place in rng.sample(range(len(words)), len(words)):
        synonyms = wordnet.synonyms(words[place]) if left else ()
        if synonyms:
            words[place] = rng.choice(synonyms)
            left -= 1
    return words
