"""The local phase's geometry, and its terms against an independent fp64 reference."""

from __future__ import annotations

import pytest
import torch
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError
from intern_trainer.ranks import init_ranks
from intern_trainer.tasks import build_task
from intern_trainer.tasks.local import at_places, shared_places, vicreg
from torch import Tensor

from tests.unit.trainer.doubles import ONE_RANK


@pytest.fixture(autouse=True, scope="module")
def _alone() -> None:
    init_ranks()


TEXT = {"width": 16, "layers": 1, "heads": 2, "context_length": 8}


def test_shared_places_are_the_middles_of_equal_parts_of_the_overlap() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 0.75, 1.0]]])
    places = shared_places(boxes, 1)[0, :, 0]  # they share 0.25 to 0.5 from the left and the lower half
    torch.testing.assert_close(places, torch.tensor([[0.75, 0.75], [0.25, 0.5]]))
    grid = shared_places(boxes, 2)[0, 0]
    torch.testing.assert_close(grid[:, 0], torch.tensor([0.625, 0.875, 0.625, 0.875]))
    torch.testing.assert_close(grid[:, 1], torch.tensor([0.625, 0.625, 0.875, 0.875]))


def test_both_views_show_the_same_place_of_the_picture_also_when_mirrored() -> None:
    """Maps that hold at each cell the place in the picture that it shows: the pairs must hold the same."""
    generator = torch.Generator().manual_seed(0)
    b, side, points = 16, 12, 5
    low = torch.rand(b, 2, 2, generator=generator) * 0.4
    boxes = torch.cat([low, low + 0.4 + torch.rand(b, 2, 2, generator=generator) * 0.2], dim=2)
    mirrored = torch.rand(b, 2, generator=generator) < 0.5
    boxes[mirrored] = boxes[mirrored][:, [2, 1, 0, 3]]
    at = (torch.arange(side) + 0.5) / side
    x_b2w = boxes[..., :1] + (boxes[..., 2:3] - boxes[..., :1]) * at
    y_b2h = boxes[..., 1:2] + (boxes[..., 3:] - boxes[..., 1:2]) * at
    maps_b22hw = torch.stack(
        [x_b2w[:, :, None].expand(b, 2, side, side), y_b2h[..., None].expand(b, 2, side, side)], dim=2
    )
    pairs = at_places(torch.cat([maps_b22hw[:, 0], maps_b22hw[:, 1]]), shared_places(boxes, points))
    assert pairs.shape == (b, 2, points**2, 2)
    inside = ((shared_places(boxes, points) * side - side / 2).abs() < side / 2 - 0.5).all(dim=-1).all(dim=1)
    assert inside.float().mean() > 0.5  # points nearer to an edge than half a cell take the edge cell's value
    torch.testing.assert_close(pairs[:, 0][inside], pairs[:, 1][inside], rtol=0, atol=1e-5)
    spread = pairs[:, 0].amax(dim=1) - pairs[:, 0].amin(dim=1)
    assert spread.min() > 0.02


def reference(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """VICReg, equation by equation, on rows [n, d]."""
    variance, covariance = [], []
    for rows in (first, second):
        n, d = rows.shape
        shortfall, cross = [], []
        for i in range(d):
            shortfall.append((1 - (rows[:, i].var() + 1e-4).sqrt()).clamp(min=0))
            for j in range(d):
                if i != j:
                    a, b = rows[:, i] - rows[:, i].mean(), rows[:, j] - rows[:, j].mean()
                    cross.append(((a * b).sum() / (n - 1)) ** 2)
        variance.append(torch.stack(shortfall).mean())
        covariance.append(torch.stack(cross).sum() / d)
    distance = ((first - second) ** 2).mean()
    return {"invariance": distance, "variance": sum(variance) / 2, "covariance": sum(covariance) / 2}


def test_terms_and_gradients_are_those_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(6, 2, 9, 5, generator=generator, dtype=torch.float64) * 0.7 + 3).requires_grad_()
    found = vicreg(z, 1)
    expected = reference(z[:, 0].flatten(0, 1), z[:, 1].flatten(0, 1))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
        (got,), (want,) = (torch.autograd.grad(loss, z, retain_graph=True) for loss in (found[name], value))
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-12)
        assert want.abs().max() > 1e-6


def test_half_precision_maps_keep_the_digits_of_their_spread() -> None:
    z = torch.randn(64, 2, 9, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 4
    half, full = vicreg(z.bfloat16(), 1), vicreg(z.bfloat16().double(), 1)
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        assert float(half[name]) == pytest.approx(float(value), rel=1e-3)


@pytest.mark.parametrize("image", ["metanet_debug", "resnet18"])
def test_evaluation_sees_the_same_towers_as_the_first_phase(image: str) -> None:
    model = {"image": image, "image_size": 32, "embed_dim": 16, "text": TEXT}
    towers = [
        build_task(Config.model_validate({"task": task, "model": model, "local": {"width": 8}}), ONE_RANK).build_model()
        for task in ("contrastive", "local")
    ]
    plain, local = (each.eval() for each in towers)
    missing = local.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("heads.") for name in missing.missing_keys)
    tensors = {"image": torch.randn(2, 3, 32, 32), "text": torch.randint(1, 9, (2, 8))}
    one, other = plain(**tensors), local(**tensors)
    both = local(**tensors, image2=torch.randn(2, 3, 32, 32))
    for name in ("image_features", "text_features", "logit_scale"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
        torch.testing.assert_close(getattr(one, name), getattr(both, name), rtol=1e-4, atol=1e-5)
    assert [tuple(level.shape) for level in both.maps] == [(4, 8, 2, 2), (4, 8, 1, 1)]


def test_a_stride_that_the_image_tower_lacks_is_refused_in_words() -> None:
    config = Config.model_validate(
        {"task": "local", "model": {"image_size": 32, "embed_dim": 16, "text": TEXT}, "local": {"strides": [7]}}
    )
    with pytest.raises(ConfigError, match=r"local.strides is \[7\]") as raised:
        build_task(config, ONE_RANK).build_model()
    assert "4, 8, 16, 32" in str(raised.value)


def test_strides_may_stand_in_any_order_and_twice() -> None:
    local = {"strides": [32, 16, 32], "width": 8}
    config = Config.model_validate(
        {"task": "local", "model": {"image_size": 32, "embed_dim": 16, "text": TEXT}, "local": local}
    )
    model = build_task(config, ONE_RANK).build_model()
    out = model(torch.randn(2, 3, 32, 32), torch.ones(2, 8, dtype=torch.long), torch.randn(2, 3, 32, 32))
    assert [level.shape[-1] for level in out.maps] == [2, 1]
