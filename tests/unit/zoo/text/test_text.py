"""The exported text tower is open_clip's, number by number, and what stands behind the end token does not matter."""

from __future__ import annotations

import pytest
import torch
from intern_zoo.hf.text import TextTransformer as PlainTextTransformer
from intern_zoo.text import create_text_transformer, tokenizer

TEXTS = ["a cat", "a rather long sentence about two dogs and a bird in a tree", ""]


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    ours = create_text_transformer(embed_dim=24, width=32, layers=3, heads=4, context_length=20).eval()
    plain = PlainTextTransformer(49408, 49407, context_length=20, width=32, layers=3, heads=4, output_dim=24)
    plain.load_state_dict(ours.state_dict())  # strict: the same names and shapes
    return ours, plain.eval()


def test_plain_tower_equals_open_clips(towers):
    ours, plain = towers
    ids = tokenizer(20)(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids), ours(ids), atol=1e-6, rtol=1e-5)


def test_padding_behind_the_end_changes_nothing(towers):
    ids = tokenizer(20)(TEXTS)
    filled = torch.where(ids == 0, 49407, ids)  # transformers fills with end tokens
    longest = int(ids.argmax(dim=-1).max()) + 1
    ours, plain = towers
    with torch.no_grad():
        torch.testing.assert_close(ours(filled), ours(ids), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(plain(filled), ours(ids), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(plain(filled[:, :longest]), ours(ids), atol=1e-6, rtol=1e-5)


def test_the_end_token_need_not_have_the_largest_id(towers):
    """A mask token stands behind CLIP's vocabulary; the feature still comes from the end token."""
    torch.manual_seed(0)
    masked = create_text_transformer(embed_dim=24, width=32, layers=3, heads=4, context_length=20, vocab_size=49409)
    plain = PlainTextTransformer(49409, 49407, context_length=20, width=32, layers=3, heads=4, output_dim=24)
    plain.load_state_dict(masked.state_dict())
    ids = tokenizer(20)(TEXTS[:2])
    ids[0, 1] = 49408
    longer = ids.clone()
    longer[0, 5:] = 17  # behind the end
    with torch.no_grad():
        torch.testing.assert_close(masked(longer), masked(ids), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(plain(ids), masked(ids), atol=1e-6, rtol=1e-5)


def test_too_long_a_text_is_told(towers):
    with pytest.raises(ValueError, match=r"21 tokens and the model takes 20.*truncation"):
        towers[1](torch.ones(1, 21, dtype=torch.long))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="not a multiple of 5 heads"):
        create_text_transformer(embed_dim=8, width=32, heads=5)


def test_tokenizer_cuts_and_fills():
    ids = tokenizer(8)(["one two three four five six seven eight", "one"])
    assert ids.shape == (2, 8)
    assert ids[0, -1] == 49407
    assert ids[1].tolist()[2:] == [49407, 0, 0, 0, 0, 0]
