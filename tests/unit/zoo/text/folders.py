"""Folders of small tokenizers, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

LINES = ["a cat and a dog", "eine Katze und ein Hund", "un chat et un chien", "猫と犬", "кошка и собака"]


def make_folder(folder: Path, lines: list[str] = LINES, **special: str) -> Path:
    """A byte-level BPE with the tokens that `special` names (`bos_token="<s>"`); like many, it puts none of them round
    a text by itself, and it pads before the text."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=sorted(set(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(lines * 10, trainer)
    backend.enable_padding(direction="left")
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder
