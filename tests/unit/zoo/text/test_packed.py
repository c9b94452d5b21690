"""Packed captions give the features and gradients of padded ones, for less work."""

from __future__ import annotations

import pytest
import torch
from intern_zoo.text import create_text_transformer, tokenizer
from torch.utils.flop_counter import FlopCounterMode

SHAPE = {"embed_dim": 24, "width": 32, "layers": 3, "heads": 4, "context_length": 20}
TEXTS = ["a cat", "", "a rather long sentence about two dogs and a bird in a tree", "one more", " ".join(["dog"] * 30)]


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    padded, packed = create_text_transformer(**SHAPE), create_text_transformer(**SHAPE, pack=True)
    packed.load_state_dict(padded.state_dict())  # strict: the same names and shapes
    return padded, packed


def run(tower, ids):
    tower.zero_grad()
    features = tower(ids)
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}


@pytest.mark.parametrize("chosen", [slice(None), slice(0, 2), slice(1, 2), slice(4, 5)])
@pytest.mark.parametrize("recompute", [False, True])
def test_features_and_gradients_are_those_of_padded_captions(towers, chosen, recompute):
    padded, packed = towers
    packed.set_grad_checkpointing(recompute)
    ids = tokenizer(20)(TEXTS[chosen])
    ids[ids == 0] = 49407  # as transformers fills: the first end token counts
    features, gradients = run(padded, ids)
    found, found_gradients = run(packed, ids)
    torch.testing.assert_close(found, features, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found_gradients, gradients, atol=1e-5, rtol=1e-4)


def test_token_features_stand_where_their_tokens_do(towers):
    padded, packed = towers
    ids = tokenizer(20)(TEXTS)
    count_b = (ids == 49407).int().argmax(dim=1) + 1
    padded.output_tokens = packed.output_tokens = True
    with torch.no_grad():
        (_, expected), (_, tokens) = padded(ids), packed(ids)
    padded.output_tokens = packed.output_tokens = False
    assert tokens.shape == expected.shape
    for row, (ours, theirs) in enumerate(zip(tokens, expected, strict=True)):
        torch.testing.assert_close(ours[: count_b[row]], theirs[: count_b[row]], atol=1e-5, rtol=1e-5)
        assert not ours[count_b[row] :].any()


def flops(tower, ids) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(ids)
    return counter.get_total_flops()


def test_work_is_that_of_the_tokens_that_count(towers):
    ids = tokenizer(20)(["a cat"] * 7 + ["four words and ends"])  # 4 tokens each, then 6, of 20
    padded, packed = (flops(tower, ids) for tower in towers)
    assert packed < 1.1 * padded * (7 * 4 + 6) / (8 * 20)
    on_meta = [flops(tower.to("meta"), ids[:1].to("meta")) for tower in towers]
    assert on_meta[0] == on_meta[1]  # without values every caption is full
