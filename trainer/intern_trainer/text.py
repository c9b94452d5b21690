"""The configured tokenizer, what the text tower takes from it, and that a run keeps the one it began with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from intern_zoo.errors import TokenizerError
from intern_zoo.text import CLIP, FolderTokenizer, Tokenizer, tokenizer

from intern_trainer.config.schema import Config, TextTower
from intern_trainer.errors import CheckpointError, ConfigError


def text_tokenizer(text: TextTower) -> Tokenizer:
    """The tokenizer that `model.text` names; made once a process.

    Raises:
        ConfigError: the folder holds none that can be used.
    """
    try:
        return _tokenizer(text.tokenizer, text.context_length)
    except TokenizerError as error:
        raise ConfigError(f"model.text.tokenizer: {error.found}", error.rule, error.fix) from error


def text_options(text: TextTower) -> dict[str, Any]:
    """What `create_two_tower` takes for its text tower; vocabulary and end token are the tokenizer's.

    Raises:
        ConfigError: see `text_tokenizer`.
    """
    pieces = text_tokenizer(text)
    ids = {"vocab_size": pieces.vocab_size, "eos_id": pieces.eot_token_id}
    return {**text.model_dump(exclude={"tokenizer"}), **ids}


def tokenizer_digest(text: TextTower) -> str:
    """Names the tokenizer by all that its ids depend on; kept in every checkpoint."""
    pieces = text_tokenizer(text)
    return pieces.digest if isinstance(pieces, FolderTokenizer) else CLIP


def with_tokenizer(config: Config, folder: Path) -> Config:
    """The configuration with the tokenizer in `folder`, where there is one."""
    if not folder.is_dir():
        return config
    text = config.model.text.model_copy(update={"tokenizer": str(folder)})
    return config.model_copy(update={"model": config.model.model_copy(update={"text": text})})


def check_tokenizer(
    text: TextTower, saved: str, where: object, fix: str = "put the tokenizer's files back, or start a new run"
) -> None:
    """See that the tokenizer is the one whose ids a checkpoint's weights know.

    Args:
        saved: `tokenizer_digest` when the checkpoint `where` was written.

    Raises:
        CheckpointError: it is another one.
    """
    now = tokenizer_digest(text)
    if now != saved:
        raise CheckpointError(
            f"{where} knows the tokenizer {saved[:12]}, and model.text.tokenizer={text.tokenizer} is {now[:12]}",
            "a text tower knows its own tokenizer's ids alone",
            fix,
        )


@lru_cache(maxsize=4)
def _tokenizer(name: str, context_length: int) -> Tokenizer:
    return tokenizer(context_length, name)
