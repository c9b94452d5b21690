"""Tokenizers: CLIP's, from the vocabulary file that open_clip ships, or one from a folder of Hugging Face's files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from intern_zoo.errors import TokenizerError

CLIP = "clip"
VOCAB_SIZE, EOT = 49408, 49407
"""Of CLIP's vocabulary."""


class Tokenizer(Protocol):
    """Texts to token ids [n, context_length]: start, pieces, end; cut before the end, filled behind it.

    Attributes:
        sot_token_id, eot_token_id: start and end; a tokenizer without a start has None there.
        vocab_size: larger than every id.
    """

    context_length: int
    sot_token_id: int | None
    eot_token_id: int
    vocab_size: int

    def __call__(self, texts: list[str]) -> Tensor: ...


class FolderTokenizer:
    """What `tokenizer.json` of a folder says, between a start and an end token.

    The start is the folder's `bos_token`, else its `cls_token`; the end its `eos_token`, else its `sep_token`; it is
    filled with its `pad_token`, else with ends. A start that is the same as the end, as GPT-2 has it, is left out: the
    text's feature is read at the first end.

    Attributes:
        backend: the tokenizers library's object. special: the names `bos`, `eos`, `pad` with their tokens.

    Raises:
        TokenizerError: no such files, or no token that could end a text.
    """

    def __init__(self, folder: str | Path, context_length: int = 77) -> None:
        self.folder, self.context_length = Path(folder), context_length
        try:
            self._source = (self.folder / "tokenizer.json").read_bytes()
            self.backend = Backend.from_buffer(self._source)
            named = _special_tokens(self.folder)
        except (OSError, ValueError) as error:  # a broken file is a ValueError of either library
            raise TokenizerError(
                f"{folder} holds no tokenizer: {error}.",
                "A tokenizer is `clip` or a folder with tokenizer.json, as transformers' save_pretrained writes it.",
                "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) makes one.",
            ) from error
        ids = self.backend.get_vocab(with_added_tokens=True)

        def first(*kinds: str) -> str | None:
            return next((named[kind] for kind in kinds if named.get(kind) in ids), None)

        start, end = first("bos_token", "cls_token"), first("eos_token", "sep_token")
        if end is None:
            raise TokenizerError(
                f"The tokenizer in {folder} has no end token.",
                "A text's feature is read at its eos_token (or sep_token).",
                'Name one of its tokens in tokenizer_config.json: "eos_token": "</s>".',
            )
        self.special = {"eos": end, "pad": first("pad_token") or end}
        if start is not None and start != end:
            self.special["bos"] = start
        self.sot_token_id, self.eot_token_id = ids.get(self.special.get("bos", "")), ids[end]
        self._pad_id, self.vocab_size = ids[self.special["pad"]], max(ids.values()) + 1
        frame = [token for token in (self.special.get("bos"), "$A", end) if token]
        self.backend.post_processor = TemplateProcessing(
            single=frame, special_tokens=[(token, ids[token]) for token in frame if token != "$A"]
        )
        self.backend.no_padding()
        self.backend.enable_truncation(context_length)

    @property
    def digest(self) -> str:
        """Of all that ids depend on."""
        return hashlib.sha256(self._source + json.dumps(self.special, sort_keys=True).encode()).hexdigest()

    def __call__(self, texts: list[str]) -> Tensor:
        # one by one: a batch would start threads, which loader processes must not inherit half-way
        ids = [self.backend.encode(text).ids for text in texts]
        return torch.tensor([row + [self._pad_id] * (self.context_length - len(row)) for row in ids], dtype=torch.long)


def tokenizer(context_length: int = 77, name: str | Path = CLIP) -> Tokenizer:
    """CLIP's tokenizer, or the one in a folder. It can be pickled, so loader workers may hold one.

    Raises:
        TokenizerError: the folder holds none that can be used.
    """
    return SimpleTokenizer(context_length=context_length) if name == CLIP else FolderTokenizer(name, context_length)


def _special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token` and the like, from the files that transformers keeps them in."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= {k: v for k, v in json.loads((folder / name).read_text(encoding="utf-8")).items() if v is not None}
    return {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in found.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
