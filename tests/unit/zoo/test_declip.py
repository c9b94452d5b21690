"""DeCLIP's model: a two-tower model with more inside, and a queue that is what a list would be."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from intern_zoo.declip import NOTHING, DeclipTowers
from intern_zoo.feature_queue import FeatureQueue
from intern_zoo.metanet.norm import BatchNorm
from intern_zoo.text.tokenizer import EOT, VOCAB_SIZE
from intern_zoo.two_tower import AUXILIARY, TwoTower, create_two_tower

TEXT = {"width": 32, "layers": 2, "heads": 2, "context_length": 12}
MASK = VOCAB_SIZE
END = 9


def build(kind):
    torch.manual_seed(0)
    return create_two_tower("metanet_debug", image_size=64, embed_dim=16, text=TEXT, model=kind).eval()


@pytest.fixture(scope="module")
def declip():
    return build(partial(DeclipTowers, projector=24, predictor=8, queue=10))


def captions(batch, seed=0):
    text = torch.randint(1, 40000, (batch, 12), generator=torch.Generator().manual_seed(seed))
    text[:, END], text[:, END + 1 :] = EOT, 0
    return text


def pictures(batch, seed=0):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_two_tower_model_that_it_was_made_of(declip):
    plain = build(TwoTower)
    for a, b in zip(
        declip(image=pictures(3), text=captions(3)), plain(image=pictures(3), text=captions(3)), strict=True
    ):
        assert a is b is None or torch.equal(a, b)
    assert declip(text=captions(3)).image_features is None
    state, theirs = declip.state_dict(), plain.state_dict()
    assert {name for name in state if not name.startswith(AUXILIARY)} == theirs.keys()
    assert all(state[name].shape == tensor.shape for name, tensor in theirs.items())
    assert "text.token_embedding.mask" in state


def test_all_views_in_one_call(declip):
    image, image2, text, text2 = pictures(3), pictures(3, 1), captions(3), captions(3, 1)
    labels = torch.full_like(text, NOTHING)
    labels[0, 2], labels[2, 1], labels[2, 5] = text[0, 2], text[2, 1], text[2, 5]
    text[0, 2] = text[2, 5] = MASK
    out = declip(image=image, image2=image2, text=text, text2=text2, text_labels=labels)
    for found, expected in (
        (out.image_features, declip.encode_image(image)),
        (out.image2_features, declip.encode_image(image2)),
        (out.text_features, declip.encode_text(text)),
        (out.text2_features, declip.encode_text(text2)),
    ):
        torch.testing.assert_close(found, expected)
    embedded = torch.cat([declip.image(image), declip.image(image2)])
    torch.testing.assert_close(out.projected_2bd, declip.heads.projector(embedded))
    torch.testing.assert_close(out.predicted_2bd, declip.heads.predictor(out.projected_2bd))
    tokens = declip.text(text)[1]
    rows = torch.stack([tokens[0, 2], tokens[2, 1], tokens[2, 5]])
    torch.testing.assert_close(out.word_logits_nv, declip.heads.words(rows))
    assert out.word_logits_nv.shape == (3, VOCAB_SIZE)


def test_the_mask_has_a_vector_of_its_own_and_the_feature_is_read_at_the_end_token(declip):
    text = captions(2)
    text[:, 3] = MASK
    embedded = declip.text.token_embedding(text)
    assert torch.equal(embedded[:, 3], declip.text.token_embedding.mask.expand(2, -1))
    assert torch.equal(embedded[:, 4], declip.text.token_embedding.weight[text[:, 4]])
    features = declip.encode_text(text)
    behind = text.clone()
    behind[:, END + 1 :] = MASK
    assert torch.equal(declip.encode_text(behind), features)  # a mask has the largest id, and is not the end
    before = text.clone()
    before[:, END - 1] = MASK
    assert not torch.allclose(declip.encode_text(before), features)


def test_words_are_guessed_from_the_words_before_alone(declip):
    text, labels = captions(1), torch.full((1, 12), NOTHING)
    labels[0, 4] = 7
    views = {"image": pictures(1), "image2": pictures(1), "text2": text, "text_labels": labels}
    changed = text.clone()
    changed[0, 5] += 1
    assert torch.equal(declip(text=text, **views).word_logits_nv, declip(text=changed, **views).word_logits_nv)
    changed[0, 4] = MASK
    assert not torch.equal(declip(text=text, **views).word_logits_nv, declip(text=changed, **views).word_logits_nv)


def test_heads_are_simsiams(declip):
    heads = declip.heads
    kinds = [[type(m).__name__ for m in part] for part in (heads.projector, heads.predictor)]
    assert kinds[0] == ["Linear", "FeatureNorm", "ReLU"] * 2 + ["Linear", "FeatureNorm"]
    assert kinds[1] == ["Linear", "FeatureNorm", "ReLU", "Linear"]
    assert [tuple(m.weight.shape) for m in heads.projector if isinstance(m, torch.nn.Linear)] == [
        (24, 16), (24, 24), (24, 24),
    ]  # fmt: skip
    assert [tuple(m.weight.shape) for m in heads.predictor if isinstance(m, torch.nn.Linear)] == [(8, 24), (24, 8)]
    assert sum(isinstance(m, BatchNorm) for m in heads.modules()) == 4  # so parallel.apply shares their statistics
    spared = declip.no_weight_decay()
    assert {"heads.words.bias", "heads.projector.1.weight"} <= spared
    assert not {"heads.words.weight", "heads.projector.0.weight"} & spared


@pytest.mark.parametrize("rows", [3, 4, 7, 25])
def test_the_queue_is_a_list_of_the_newest(rows):
    queue, newest = FeatureQueue(10, 4, block=3), []
    torch.manual_seed(0)
    query = F.normalize(torch.randn(6, 4), dim=1)
    assert torch.equal(queue.nearest(query), query)  # nothing there to take its place
    for _ in range(6):
        new = F.normalize(torch.randn(rows, 4), dim=1)
        queue.push(new)
        newest = [*newest, *new][-10:]
        expected = torch.stack(newest)[(query @ torch.stack(newest).T).argmax(dim=1)]
        assert torch.equal(queue.nearest(query), expected)
    assert sorted(queue.features.tolist()) == sorted(row.tolist() for row in newest)
    assert queue.nearest(query.bfloat16()).dtype == torch.bfloat16


def test_half_filled_queues_have_no_empty_neighbours():
    queue = FeatureQueue(10, 4)
    entries = torch.tensor([[-0.6, -0.8, 0, 0], [-0.8, -0.6, 0, 0]])
    queue.push(entries)
    assert torch.equal(queue.nearest(torch.eye(4)[:2]), entries)  # an empty entry's product, 0, would be larger
