"""The losses of a global batch, on any number of ranks, are their definitions over the whole score matrix in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.distributed.contrastive_worker import GLOBAL_BATCH, LinearTowers, whole_batch
from tests.distributed.spawn import run_ranks

TARGET = "tests.distributed.contrastive_worker:losses_and_gradients"


def clip(z_gg: Tensor) -> Tensor:
    own = torch.arange(GLOBAL_BATCH)
    return (F.cross_entropy(z_gg, own) + F.cross_entropy(z_gg.t(), own)) / 2


def siglip(z_gg: Tensor) -> Tensor:
    signs = 2 * torch.eye(GLOBAL_BATCH, dtype=z_gg.dtype) - 1
    return -(torch.sigmoid(signs * z_gg).log()).sum() / GLOBAL_BATCH


@pytest.fixture(scope="module")
def by_definition() -> dict[str, dict[str, Tensor]]:
    found = {}
    for kind, loss_of in (("clip", clip), ("siglip", siglip)):
        model = LinearTowers(kind)
        out = model(**whole_batch())
        z_gg = out.logit_scale * out.image_features @ out.text_features.t()
        loss = loss_of(z_gg if out.logit_bias is None else z_gg + out.logit_bias)
        loss.backward()
        hits = (z_gg.argmax(dim=1) == torch.arange(GLOBAL_BATCH)).double().sum()
        found[kind] = {"loss": loss.detach(), "hits": hits}
        found[kind] |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_value_and_gradients_are_the_definition_on_any_number_of_ranks(
    ranks: int, by_definition: dict[str, dict[str, Tensor]]
) -> None:
    for rank in run_ranks(TARGET, ranks=ranks):
        for kind, expected in by_definition.items():
            rank[kind]["hits"] *= ranks  # the workers' mean
            assert rank[kind].keys() == expected.keys()
            for name, want in expected.items():
                got = torch.tensor(rank[kind][name], dtype=torch.float64)
                assert torch.allclose(got, want, rtol=1e-12, atol=1e-14), (kind, name, (got - want).abs().max())
