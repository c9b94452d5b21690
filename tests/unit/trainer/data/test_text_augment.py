"""DeCLIP's text views: a function of caption and seed, masks where and as often as they should be, words from EDA."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from intern_trainer.data.text_augment import DeclipTexts, reword
from intern_trainer.data.wordnet import WordNet
from intern_zoo.declip import NOTHING
from intern_zoo.text import tokenizer

LENGTH = 32
CAPTION = "a small dog runs over the green field near an old house and a tree"
CLIP = tokenizer(LENGTH)
START, END, WORDS = CLIP.sot_token_id, CLIP.eot_token_id, 49408


def views(**options: object) -> DeclipTexts:
    return DeclipTexts(CLIP, START, END, WORDS, **options)  # type: ignore[arg-type]


def write_wordnet(folder: Path, senses: dict[str, list[list[str]]]) -> WordNet:
    """A database of WordNet's format, with a licence at the top of each file."""
    for part in ("noun", "verb", "adj", "adv"):
        data, index = "  1 a licence  \n", dict[str, list[int]]()
        for members in senses.get(part, []):
            for member in members:
                index.setdefault(member.partition("(")[0].lower(), []).append(len(data))
            words = " ".join(f"{member} 0" for member in members)
            data += f"{len(data):08d} 03 n {len(members):02x} {words} 001 @ 00000000 n 0000 | dog dog 02 x 0  \n"
        lines = [f"{w} n {len(at)} 1 @ {len(at)} 0 {' '.join(f'{a:08d}' for a in at)}  \n" for w, at in index.items()]
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text("  1 a licence  \n  2 of two lines  \n" + "".join(sorted(lines)))
    return WordNet(folder)


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    nouns = [["dog", "domestic_dog", "Canis_familiaris"], ["cad", "dog"], ["house"], ["angstrom", "a"], ["d"], ["dogs"]]
    return write_wordnet(tmp_path, {"noun": nouns, "verb": [["dog", "chase"]], "adj": [["small", "little(a)"]]})


def test_rows_depend_on_caption_and_seed_alone() -> None:
    make = pickle.loads(pickle.dumps(views()))  # loader processes get it so
    whole = make([CAPTION] * 6, [1, 2, 3, 4, 5, 6])
    part = make([CAPTION] * 2, [5, 2])
    for name, rows in part.items():
        assert rows.dtype == torch.int64
        assert rows.shape == (2, LENGTH)
        assert torch.equal(rows, whole[name][[4, 1]])
    assert len({tuple(row) for row in whole["text"].tolist()}) > 1
    assert len({tuple(row) for row in whole["text2"].tolist()}) > 1


def test_masks_fall_on_words_alone_in_the_shares_of_bert() -> None:
    count = 4000
    found = views()([CAPTION] * count, list(range(count)))
    plain = CLIP([CAPTION])[0]
    words = (plain != START) & (plain != END) & (torch.arange(LENGTH) < plain.tolist().index(END))
    chosen = found["text_labels"] != NOTHING
    assert not chosen[:, ~words].any()
    assert torch.equal(found["text"][~chosen], plain.expand(count, -1)[~chosen])
    assert torch.equal(found["text_labels"][chosen], plain.expand(count, -1)[chosen])
    assert chosen[:, words].float().mean().item() == pytest.approx(0.15, abs=0.01)
    became = found["text"][chosen]
    assert (became == WORDS).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (became == found["text_labels"][chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert not ((became == START) | (became == END)).any()
    assert (found["text"] == END).sum() == count


def test_random_words_are_never_ends() -> None:
    rng = random.Random(0)
    assert {DeclipTexts(CLIP, start=0, end=2, words=4)._any_word(rng) for _ in range(50)} == {1, 3}


def test_a_cut_caption_keeps_its_end() -> None:
    found = views(rate=1.0)([" ".join(["dog"] * 100)], [3])
    assert found["text"][0, -1] == END
    assert found["text_labels"][0, -1] == NOTHING
    assert (found["text_labels"][0, 1:-1] != NOTHING).all()


def test_rewording_swaps_or_leaves_out(wordnet: WordNet) -> None:
    words = CAPTION.split()
    kinds = Counter[str]()
    for seed in range(400):
        other = reword(CAPTION, random.Random(seed)).split()
        if Counter(other) == Counter(words):
            kinds["swapped" if other != words else "same"] += 1
        else:
            assert not Counter(other) - Counter(words)
            kinds["shorter"] += 1
    assert kinds["swapped"] > 150
    assert kinds["shorter"] > 120
    assert reword("dog", random.Random(0)) == "dog"
    assert reword("", random.Random(0)) == ""
    replaced = {reword("the dog", random.Random(seed), wordnet) for seed in range(60)} - {"the dog", "dog the"}
    assert {"the chase", "the cad", "the domestic dog", "the canis familiaris"} <= replaced
    assert all(text.split()[0] == "the" for text in replaced if " " in text)


def test_synonyms_of_every_sense_but_not_of_grammar(wordnet: WordNet) -> None:
    assert wordnet.missing() == []
    assert wordnet.synonyms("Dog") == ("cad", "canis familiaris", "chase", "domestic dog")
    assert wordnet.synonyms("small") == ("little",)
    assert wordnet.synonyms("little") == ("small",)
    for lonely in ("house", "a", "zebra", "", "dog's"):
        assert wordnet.synonyms(lonely) == ()
    (wordnet.folder / "data.verb").unlink()
    assert wordnet.missing() == ["data.verb"]
