"""The exported tokenizer cuts texts as open_clip's does."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import intern_trainer.data.embedded
import pytest
from intern_zoo.hf.tokenizer import save_tokenizer
from intern_zoo.text import tokenizer
from transformers import AutoTokenizer

ODD = [
    "don\u2019t \u201cquote\u201d it, \u2018it\u2019s\u2019 \u201ahere",
    "a &amp; b &lt;b&gt; &amp;lt; &eacute;t&Eacute; &#39;hi&#39; &hearts;",
    "\ufb01ne \ufb02oor \uff26\uff35\uff2c\uff2c\u3000width",
    "tab\tnew\nline\x1c x\u2028y zero\u200bwidth soft\u00adhyphen hi\x7fthere \ufeffbom",
    "wow!! it's 2021, FOO'S a_b-c/d 50\u20ac x\u00b2 \u00bd",
    "\u00dcn\u00efc\u00f6d\u00e9 e\u0301 \u0130stanbul \u01c4 \u0149 \u2163",
    "\u65e5\u672c\u8a9e\u306e\u732b \U0001f600 cat",
    "<start_of_text> x <end_of_text> <|endoftext|>",
    "caf\u00c3\u00a9 L\u00c3\u00a9zard it\u00e2\u20ac\u2122s",
    "\x1b[31mred\x1b[0m",
    "a" * 500,
    " ".join(["dog"] * 100),
    "",
    "  ",
]


def _captions() -> list[str]:
    captions = []
    for path in sorted(Path(intern_trainer.data.embedded.__file__).parent.glob("shards/*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.endswith(".json"):
                    captions.append(json.load(shard.extractfile(member))["caption"])
    return captions


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, tokenizer(77))
    return AutoTokenizer.from_pretrained(folder)


def _assert_same(exported, texts: list[str]) -> None:
    theirs = exported(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    wrong = []
    for text, a, b in zip(texts, theirs, tokenizer(77)(texts).tolist(), strict=True):
        end = len(b) - b[::-1].index(49407)  # behind the last end token both only fill
        if a[:end] != b[:end] or set(a[end:]) - {49407}:
            wrong.append((text, a[:end], b[:end]))
    assert not wrong, wrong[:3]


def test_ids_of_more_than_a_thousand_captions(exported):
    captions = _captions()
    assert len(captions) > 1000
    _assert_same(exported, captions)


@pytest.mark.parametrize("text", ODD)
def test_ids_of_odd_texts(exported, text):
    _assert_same(exported, [text])


def test_length_and_special_tokens(exported):
    assert exported.model_max_length == 77
    assert exported.eos_token_id == exported.pad_token_id == 49407
    assert exported.bos_token_id == 49406
    assert exported.decode(exported("a cat")["input_ids"], skip_special_tokens=True).strip() == "a cat"
