"""MetaNet and UniNet against what their authors' code gives: keys, shapes, parameter counts, outputs, gradients.

The golden files and the rule by which their weights are drawn lie in tests/golden/metanet.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from intern_zoo import create_model
from intern_zoo.metanet import MetaNet
from intern_zoo.metanet.state_dict import load_released, released_names, to_released

from tests.golden.metanet import GOLDENS, golden_keys, load_golden, seeded_weights
from tests.golden.metanet.seeded import digest, largest_difference, seeded_picture

QUICK = ["metanet_b4", "uninet_b1"]
VARIANTS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in GOLDENS]


def released(name: str) -> MetaNet:
    """The variant as it was released: UniNets with their classifier, MetaNets without."""
    model = create_model(name, num_classes=1000 if name.startswith("uninet") else 0)
    assert isinstance(model, MetaNet)
    return model


@pytest.mark.parametrize("name", GOLDENS)
def test_keys_shapes_and_counts(name: str) -> None:
    with torch.device("meta"):
        model = released(name)
    assert {key: tuple(tensor.shape) for key, tensor in to_released(model).items()} == golden_keys(name)
    assert sum(p.numel() for p in model.parameters()) == load_golden(name)["parameters"]


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs(name: str) -> None:
    with torch.device("meta"):
        model = released(name).eval()
    names = {theirs: ours for ours, theirs in released_names(model).items()}
    weights = {names[key]: tensor for key, tensor in seeded_weights(name)}
    model.load_state_dict(weights, assign=True)
    found: dict[str, torch.Tensor] = {}
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda _m, _x, out, key=f"stage{i}": found.__setitem__(key, out))
    for size, kept in load_golden(name)["outputs"].items():
        height, width = map(int, size.split("x"))
        with torch.no_grad():
            features = model.forward_features(seeded_picture(1, height, width))
            found["pooled"] = model.forward_head(features, pre_logits=True)
            found["scores"] = model.forward_head(features)
        worst = {key: largest_difference(digest(found[key]), numbers) for key, numbers in kept.items()}
        assert max(worst.values()) <= 1e-5, f"{name} at {size}: {worst}"


@pytest.mark.parametrize("name", [pytest.param("metanet_b4", marks=pytest.mark.slow), "uninet_b1"])
def test_a_training_pass(name: str) -> None:
    """Batch statistics, gradients and running statistics."""
    model = released(name)
    load_released(model, dict(seeded_weights(name)))
    model.train()
    kept: dict[str, Any] = load_golden(name)["training"]
    pooled = model.forward_head(model.forward_features(seeded_picture(4, 64, 64)), pre_logits=True)
    pooled.square().mean().backward()
    theirs = released_names(model)
    gradients = {theirs[n]: p.grad for n, p in model.named_parameters() if p.grad is not None}
    buffers = {theirs[n]: b for n, b in model.named_buffers() if n.endswith(("_mean", "_var"))}
    found = {
        "pooled": pooled,
        "gradient_norms": torch.stack([gradients[n].norm() for n in sorted(gradients)]),
        "stem_gradient": gradients["stem.0.weight"],
        "running": torch.cat([buffers[n] for n in sorted(buffers)]),
    }
    worst = {key: largest_difference(digest(tensor), kept[key]) for key, tensor in found.items()}
    assert max(worst.values()) <= 1e-5, worst
