"""CLIP's byte-pair tokenizer, from the vocabulary file that open_clip ships."""

from __future__ import annotations

from typing import Protocol

from open_clip.tokenizer import SimpleTokenizer
from torch import LongTensor

VOCAB_SIZE, EOT = 49408, 49407
"""Of CLIP's vocabulary."""


class Tokenizer(Protocol):
    """Texts to token ids [n, context_length]: start, bytes in pairs, end; cut at the end, filled with zeros."""

    context_length: int
    sot_token_id: int
    eot_token_id: int

    def __call__(self, texts: list[str]) -> LongTensor: ...


def tokenizer(context_length: int = 77) -> Tokenizer:
    """The tokenizer of all our text towers. It can be pickled, so loader workers may hold one."""
    return SimpleTokenizer(context_length=context_length)
