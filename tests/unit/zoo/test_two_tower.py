"""Both towers together: unit vectors, the bounded temperature, and what weight decay leaves alone."""

from __future__ import annotations

import pytest
import torch
from intern_zoo.two_tower import create_two_tower

TEXT = {"width": 32, "layers": 2, "heads": 2, "context_length": 12}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_two_tower(
        "metanet_debug", image_size=64, embed_dim=16, text=TEXT, max_logit_scale=50.0, min_logit_scale=4.0
    )


def test_features_are_unit_vectors(model):
    ids = torch.randint(1, 49407, (3, 12))
    out = model(image=torch.randn(3, 3, 64, 64), text=ids)
    torch.testing.assert_close(out.image_features.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(out.text_features.norm(dim=-1), torch.ones(3))
    assert out.logit_scale.shape == (1,)
    assert out.logit_scale.item() == pytest.approx(1 / 0.07)
    only_text = model(text=ids)
    assert only_text.image_features is None
    torch.testing.assert_close(only_text.text_features, out.text_features)


def test_no_parameter_without_dimensions(model):
    assert [name for name, parameter in model.named_parameters() if parameter.ndim == 0] == []


@pytest.mark.parametrize(("start", "bound", "outwards"), [(10.0, 50.0, -1), (-10.0, 4.0, 1)])
def test_logit_scale_stops_at_its_bounds_and_comes_back(model, start, bound, outwards):
    before = model.logit_scale.detach().clone()
    with torch.no_grad():
        model.logit_scale.fill_(start)
    scale = model().logit_scale
    assert scale.item() == bound
    (out,) = torch.autograd.grad(outwards * scale.sum(), model.logit_scale, retain_graph=True)  # descent moves it out
    (back,) = torch.autograd.grad(-outwards * scale.sum(), model.logit_scale)
    assert out.item() == 0.0
    assert back.item() * outwards < 0.0
    with torch.no_grad():
        model.logit_scale.copy_(before)


def test_weight_decay_leaves_offsets_and_factors_alone(model):
    spared = model.no_weight_decay()
    parameters = dict(model.named_parameters())
    assert spared <= parameters.keys()
    assert {"logit_scale", "text.positional_embedding", "text.ln_final.weight"} <= spared
    assert all(name in spared for name, parameter in parameters.items() if parameter.ndim <= 1)
    assert any(name.endswith("temperature") for name in spared)
    decayed = parameters.keys() - spared
    assert {"image.projection.weight", "text.text_projection", "text.token_embedding.weight"} <= decayed


@pytest.mark.parametrize(("image", "position"), [("resnet18", None), ("vit_tiny_patch16_224", "pos_embed")])
def test_weight_decay_of_timms_models(image, position):
    with torch.device("meta"):
        model = create_two_tower(image, image_size=32, embed_dim=16, text=TEXT)
    spared = model.no_weight_decay()
    assert spared <= dict(model.named_parameters()).keys()
    assert position is None or f"image.trunk.{position}" in spared


def test_bfloat16(model):
    half = create_two_tower("metanet_debug", image_size=64, embed_dim=16, text=TEXT).bfloat16()
    out = half(image=torch.randn(2, 3, 64, 64).bfloat16(), text=torch.randint(1, 49407, (2, 12)))
    assert out.image_features.dtype == out.text_features.dtype == torch.bfloat16
    assert torch.isfinite(out.image_features).all()


@pytest.mark.parametrize("size", [48, 64])
def test_models_of_a_fixed_size_get_the_pictures_size(size):
    with torch.device("meta"):
        model = create_two_tower("vit_tiny_patch16_224", image_size=size, embed_dim=16, text=TEXT)
    assert model.image.trunk.pos_embed.shape[1] == (size // 16) ** 2 + 1


def test_a_frozen_tower_keeps_its_statistics():
    model = create_two_tower("metanet_debug", 32, 16, {"width": 16, "layers": 1, "heads": 2, "context_length": 8})
    model.image.requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.image.modules())
    assert all(module.training for module in model.text.modules())
    before = {name: buffer.clone() for name, buffer in model.image.named_buffers()}
    model(image=torch.randn(2, 3, 32, 32))
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.image.named_buffers())


def test_a_bias_only_where_it_was_asked_for(model):
    """As SigLIP has it; and transformers' side of it."""
    assert "logit_bias" not in model.state_dict()
    assert model().logit_bias is None
    sigmoid = create_two_tower("metanet_debug", 64, 16, TEXT, initial_logit_scale=10.0, initial_logit_bias=-10.0)
    out = sigmoid()
    assert out.logit_scale.item() == pytest.approx(10.0)
    assert out.logit_bias.tolist() == [-10.0]
    assert "logit_bias" in sigmoid.no_weight_decay()
    out.logit_bias.sum().backward()
    assert sigmoid.logit_bias.grad.tolist() == [1.0]
