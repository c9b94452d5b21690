"""Deferred construction against the plain one under the same seed, bit for bit."""

from __future__ import annotations

import pytest
import torch
from intern_trainer.engine.deferred import CannotDefer, Deferred
from intern_zoo.two_tower import create_two_tower
from torch import nn

TEXT = {"width": 64, "layers": 2, "heads": 2, "context_length": 16}


@pytest.mark.parametrize("image", ["metanet_debug", "uninet_b0", "resnet18", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_every_weight_is_that_of_a_plain_construction(image: str) -> None:
    def build() -> nn.Module:
        return create_two_tower(image, image_size=32, embed_dim=32, text=TEXT)

    torch.manual_seed(3)
    plain = build()
    after = torch.rand(4)
    torch.manual_seed(3)
    deferred = Deferred(large=32)
    with deferred:
        made = build()
    assert torch.equal(torch.rand(4), after), "the generator stands where a plain construction leaves it"
    state = made.state_dict(keep_vars=True)
    assert sum(tensor.is_meta for tensor in state.values()) > 50
    for name, expected in plain.state_dict().items():
        assert torch.equal(deferred.fill(state[name]), expected), name


def test_small_tensors_are_real_at_once() -> None:
    deferred = Deferred()
    with deferred:
        layer = nn.Linear(256, 256)
    assert layer.weight.is_meta
    assert torch.equal(deferred.fill(layer.bias), layer.bias)


def test_operations_on_a_part_of_a_weight_are_kept_in_order() -> None:
    def build() -> torch.Tensor:
        weight = torch.empty(8, 6)
        nn.init.normal_(weight)
        nn.init.uniform_(weight[:4])
        nn.init.trunc_normal_(weight.t()[1], std=0.1)
        weight[2].copy_(torch.arange(6.0))
        return weight.mul_(2)

    torch.manual_seed(0)
    expected = build()
    torch.manual_seed(0)
    deferred = Deferred(large=1)
    with deferred:
        made = build()
    assert made.is_meta
    assert torch.equal(deferred.fill(made), expected)


def test_a_constructor_that_computes_with_a_large_weight_is_refused() -> None:
    with pytest.raises(CannotDefer, match="reads a weight"), Deferred(large=1):
        torch.nn.init.normal_(torch.empty(4)).sum()


def test_torch_initialises_as_before_once_it_is_over() -> None:
    before = nn.init._no_grad_trunc_normal_
    with pytest.raises(RuntimeError), Deferred():
        raise RuntimeError
    assert nn.init._no_grad_trunc_normal_ is before
