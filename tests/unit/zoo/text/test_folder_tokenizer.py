"""A folder's tokenizer: start, end, cut, filling, and the same ids in an export."""

from __future__ import annotations

import json
import pickle

import pytest
from intern_zoo.errors import TokenizerError
from intern_zoo.hf.tokenizer import save_tokenizer
from intern_zoo.text import FolderTokenizer, tokenizer
from transformers import AutoTokenizer

from tests.unit.zoo.text.folders import LINES, make_folder

KINDS = {
    "bos and eos": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "cls and sep": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    "eos alone": {"eos_token": "</s>"},
    "one for both": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_stands_between_start_and_end(kind, tmp_path):
    words = tokenizer(12, make_folder(tmp_path, **KINDS[kind]))
    ids = words([LINES[0], " ".join(LINES), ""])
    assert ids.shape == (3, 12)
    start = [] if words.sot_token_id is None else [words.sot_token_id]
    assert (words.sot_token_id is None) == (kind in ("eos alone", "one for both"))
    for row, content in zip(ids.tolist(), (True, True, False), strict=True):
        end = row.index(words.eot_token_id)
        assert row[: len(start)] == start
        assert (end > len(start)) == content
        assert len(set(row[end + 1 :])) <= 1
    assert ids[1, -1] == words.eot_token_id  # cut before the end, not through it
    assert int(ids.max()) < words.vocab_size
    assert pickle.loads(pickle.dumps(words))(LINES).equal(words(LINES))


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_gives_the_same_ids(kind, tmp_path):
    words = FolderTokenizer(make_folder(tmp_path / "own", **KINDS[kind]), 12)
    save_tokenizer(tmp_path / "hf", words)
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [*LINES, "Ein  Haus\u2019s \u00e9t\u00e9, 12!", " ".join(LINES), ""]
    theirs = exported(texts, padding="max_length", truncation=True)
    assert theirs.keys() == {"input_ids", "attention_mask"}
    for text, a, b in zip(texts, theirs["input_ids"], words(texts).tolist(), strict=True):
        end = b.index(words.eot_token_id) + 1
        assert a[:end] == b[:end], text
    assert exported.model_max_length == 12


def test_the_digest_is_of_all_that_ids_depend_on(tmp_path):
    first = FolderTokenizer(make_folder(tmp_path / "a", **KINDS["eos alone"])).digest
    assert FolderTokenizer(make_folder(tmp_path / "b", **KINDS["eos alone"]), 9).digest == first
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a"}))
    assert FolderTokenizer(tmp_path / "b").digest != first
    assert FolderTokenizer(make_folder(tmp_path / "c", LINES[:2], **KINDS["eos alone"])).digest != first


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(TokenizerError, match=r"holds no tokenizer.*save_pretrained"):
        tokenizer(12, tmp_path)
    with pytest.raises(TokenizerError, match="has no end token"):
        tokenizer(12, make_folder(tmp_path, bos_token="<s>"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        tokenizer(12, tmp_path)
