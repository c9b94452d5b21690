"""Tokenizers in transformers' files: a folder's own, or CLIP's, made from the vocabulary that open_clip ships.

open_clip cleans a text with ftfy and Python before it cuts it into pairs. The normalizers here do the same from
ftfy's own tables: HTML entities, curled quotes, ligatures, full-width letters, control characters, white space,
single characters that were decoded wrongly. Words of several such characters, and Greek capitals at a word's end, are
what remains different.
"""

from __future__ import annotations

from html.entities import name2codepoint
from pathlib import Path

from ftfy import fix_text
from ftfy.chardata import CONTROL_CHARS, DOUBLE_QUOTE_RE, LIGATURES, SINGLE_QUOTE_RE, WIDTH_MAP
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from intern_zoo.text import FolderTokenizer, Tokenizer

START, END = "<start_of_text>", "<end_of_text>"
WORDS = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
PYTHON_SPACE = r"[\s\x1c-\x1f]+"

TERMINAL_COLOUR = r"\x1b\[[\d;]*[a-zA-Z]"


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and its companions; ids equal those of `tokenizer`, up to and including the end token.

    Behind it transformers may put other tokens, such as ends where open_clip puts zeros. To the text tower they are
    the same: it reads the first end token, causally.
    """
    if isinstance(tokenizer, FolderTokenizer):
        backend, special = tokenizer.backend, tokenizer.special
    else:
        backend, special = _clip_backend(), {"bos": START, "eos": END, "pad": END, "unk": END}
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.context_length,
        model_input_names=["input_ids", "attention_mask"],
        processor_class="CLIPProcessor",
        **{f"{name}_token": token for name, token in special.items()},
    ).save_pretrained(folder)


def _clip_backend() -> Backend:
    source = SimpleTokenizer()
    merges = sorted(source.bpe_ranks, key=source.bpe_ranks.__getitem__)
    backend = Backend(BPE(vocab=source.encoder, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    backend.normalizer = normalizers.Sequence(_cleaning())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    spaces = [decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)]
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), *spaces])
    backend.post_processor = processors.RobertaProcessing(
        (END, source.eot_token_id), (START, source.sot_token_id), trim_offsets=False, add_prefix_space=False
    )
    return backend


def _cleaning() -> list[normalizers.Normalizer]:
    """HTML entities, then what ftfy's tables mend, then white space and case."""
    # `&amp;` first and last: open_clip unescapes twice
    entities = {"amp": "&", **{name: chr(code) for name, code in name2codepoint.items()}, "#39": "'", "#34": '"'}
    replaced = [(f"&{name};", character) for name, character in entities.items()] + [("&amp;", "&")]
    replaced += _wrongly_decoded()
    replaced += [(chr(code), text) for code, text in {**LIGATURES, **WIDTH_MAP}.items()]
    removed = "[" + "".join(f"\\x{{{code:x}}}" for code in CONTROL_CHARS) + "]"
    patterns = [
        (SINGLE_QUOTE_RE.pattern, "'"),
        (DOUBLE_QUOTE_RE.pattern, '"'),
        (TERMINAL_COLOUR, ""),
        (removed, ""),
        (PYTHON_SPACE, " "),
    ]
    steps = [normalizers.Replace(found, text) for found, text in replaced] + [normalizers.NFC()]
    steps += [normalizers.Replace(Regex(found), text) for found, text in patterns]
    return [*steps, normalizers.Strip(), normalizers.Lowercase()]


def _wrongly_decoded() -> list[tuple[str, str]]:
    """Single characters whose UTF-8 bytes were read as Windows-1252 ("Ã©" for "é"), as far as ftfy takes them back."""
    pairs = []
    for character in map(chr, (*range(0xA1, 0x180), *range(0x2010, 0x2040), 0x20AC, 0x2122)):
        try:
            garbled = character.encode("utf-8").decode("windows-1252")
        except UnicodeDecodeError:
            continue
        if fix_text(f"a{garbled}a") == fix_text(f"a{character}a"):
            pairs.append((garbled, character))
    return pairs
