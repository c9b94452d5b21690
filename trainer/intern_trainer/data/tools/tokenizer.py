"""`intern-trainer data tokenizer`: byte pairs learned from one's own captions, for `model.text.tokenizer`.

CLIP's byte pairs are English; other languages fall into single bytes and soon fill the context. A few thousand pairs
of one's own are shorter texts and a smaller table.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from intern_trainer.config.schema import Config
from intern_trainer.data import captions
from intern_trainer.data.captions import CaptionRules
from intern_trainer.data.decode import BadSample
from intern_trainer.data.tools.pieces import Piece, choose, read
from intern_trainer.data.tools.pool import each
from intern_trainer.data.tools.results import write_text
from intern_trainer.errors import ConfigError, DataError

SPECIAL = {"bos_token": "<start_of_text>", "eos_token": "<end_of_text>", "pad_token": "<pad>"}
LEAST = 256 + len(SPECIAL)
"""Every byte is a token, so that there is no text that cannot be written."""


def learn_tokenizer(locations: list[str], config: Config, workers: int, to: Path, vocab: int, sample: int) -> int:
    """Learn `vocab` tokens from all captions in all of `data.languages` (empty: all languages), and write them to the
    folder `to`. Gives the exit code.

    Args:
        sample: learn from so many samples at most, drawn evenly.

    Raises:
        ConfigError: something is in `to`, or `vocab` is too small. DataError: there are no captions.
        EnvironmentFault: `to` cannot be written.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is there already", "a tokenizer is never overwritten", "give another --to")
    if vocab < LEAST:
        raise ConfigError(f"--vocab {vocab}", f"256 bytes and {len(SPECIAL)} marks are tokens, too", "--vocab 8000")
    chosen = choose(locations, config.data, workers, sample)
    for error in chosen.failures.values():
        raise error
    # all of them before the library's threads start: the workers that read are forked
    parts = each(partial(_captions, config), chosen.pieces, workers, "samples (thousands)")
    texts = [text for part in parts for text in part]
    if not texts:
        raise DataError("no captions were found", "a tokenizer is learned from captions", "check data.caption_keys")
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    write_text(to / "tokenizer.json", backend.to_str(pretty=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
    write_text(to / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    print(f"{backend.get_vocab_size():,} tokens from {len(texts):,} captions in {to}: model.text.tokenizer={to}")
    return 0


def _captions(config: Config, piece: Piece) -> list[str]:
    """All captions of the piece's usable samples."""
    found, rules = list[str](), CaptionRules.of(config.data)
    for member in read(piece, config.data):
        try:
            texts = captions.captions(member.content, captions.record(member.content), rules)
        except BadSample:  # `data check` names them
            continue
        found += [text for group in texts.values() for text in group]
    return found
