"""The verbs that timm's models answer, on MetaNet, and timm's own ways to ask for one."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from intern_zoo import ModelConfigError, create_model
from intern_zoo.metanet import VARIANTS, MetaNet
from timm.models import group_parameters


def debug(**overrides: object) -> MetaNet:
    torch.manual_seed(0)
    model = create_model("metanet_debug", **overrides)
    assert isinstance(model, MetaNet)
    return model


def picture(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "out_indices", "channels"),
    [
        ("metanet_b4", (1, 3), [128, 384]),
        ("metanet_debug", None, [24, 32, 64, 128]),
        ("metanet_debug", (0,), [24]),
        ("metanet_debug", (-1,), [128]),
    ],
)
def test_timm_features_only(name: str, out_indices: tuple[int, ...] | None, channels: list[int]) -> None:
    chosen = {} if out_indices is None else {"out_indices": out_indices}
    model = timm.create_model(name, features_only=True, **chosen).eval()
    with torch.no_grad():
        maps = model(picture(1, 65, 96))
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == [[4, 8, 16, 32][i] for i in (out_indices or range(4))]
    for feature, width, stride in zip(maps, channels, model.feature_info.reduction(), strict=True):
        assert feature.shape == (1, width, -(-65 // stride), -(-96 // stride))


def test_timm_creates_every_variant() -> None:
    assert set(VARIANTS) <= set(timm.list_models())
    model = timm.create_model("metanet_debug", num_classes=10, drop_path_rate=0.2)
    assert model(picture()).shape == (2, 10)
    assert model.default_cfg["input_size"] == (3, 64, 64)
    assert model.pretrained_cfg["architecture"] == "metanet_debug"


def test_timm_pretrained_is_refused_with_a_way_out() -> None:
    with pytest.raises(ModelConfigError, match="state_dict"):
        timm.create_model("metanet_debug", pretrained=True)


def test_forward_is_features_then_head() -> None:
    model, x = debug(num_classes=5).eval(), picture(2, 64, 96)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 3)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
    assert torch.equal(model(x), model.classifier(pooled))


def test_forward_intermediates() -> None:
    model, x = debug().eval(), picture()
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    assert [64 // m.shape[2] for m in maps] == [4, 8, 16, 32]
    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(last_two, maps[2:], strict=True)] == [True, True]
    early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[0])
    with pytest.raises(ValueError, match="There are 4"):
        model.forward_intermediates(x, indices=[4])


def test_stop_early_runs_no_later_stage() -> None:
    model = debug()
    model.stages[2].register_forward_hook(lambda *_: pytest.fail("stage 2 ran"))
    model.forward_intermediates(picture(), indices=[0], stop_early=True, intermediates_only=True)


def test_prune_intermediate_layers() -> None:
    model, x = debug().eval(), picture()
    expected = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert len(model.stages) == 3
    pruned = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(pruned, expected, strict=True))


def test_reset_classifier() -> None:
    model, x = debug(num_classes=5), picture()
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 2, 2)


def test_group_matcher_orders_parameters_from_input_to_output() -> None:
    model = debug(num_classes=5)
    groups = group_parameters(model, model.group_matcher())
    assert sorted(name for names in groups.values() for name in names) == sorted(n for n, _ in model.named_parameters())
    group_of = {name: group for group, names in groups.items() for name in names}
    order = [group_of[name] for name, _ in model.named_parameters()]
    assert order == sorted(order)
    assert group_of["stem.conv.weight"] == 0
    assert group_of["classifier.weight"] == max(groups)
    assert len(groups) == 1 + sum(model.config.depths) + 1  # stem, blocks (the head with the last), classifier
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == 1 + len(model.config.depths) + 1


@pytest.mark.parametrize("copied", [False, True])
def test_grad_checkpointing_changes_nothing_but_memory(copied: bool) -> None:
    plain, recomputed = debug(drop_path_rate=0.3), debug(drop_path_rate=0.3)
    recomputed.set_grad_checkpointing()
    names = list(recomputed.state_dict())
    assert names == list(plain.state_dict())
    if copied:
        recomputed = pickle.loads(pickle.dumps(copy.deepcopy(recomputed)))
    runs = []
    for model in (plain, recomputed):
        calls = []
        model.stages[1].blocks[0].project.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)
        model(picture()).square().sum().backward()
        runs.append(len(calls))
    assert runs == [1, 2]
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(a, b), name
    recomputed.set_grad_checkpointing(False)
    assert "forward" not in recomputed.units()[0].__dict__


def test_no_weight_decay_names_factors_and_offsets() -> None:
    model = debug(num_classes=5)
    spared = model.no_weight_decay()
    decayed = {name for name, _ in model.named_parameters()} - spared
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert any(name.endswith("temperature") for name in spared)
    assert any(name.endswith("gamma") for name in spared)
    assert "stem.conv.weight" in decayed
    for parameter in model.parameters():  # what sharding leaves in place
        parameter.data = parameter.new_empty(0)
    assert model.no_weight_decay() == spared


def test_freeze_statistics() -> None:
    model = debug()
    model.freeze_statistics()
    before = copy.deepcopy(dict(model.named_buffers()))
    model.train()(picture())
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())
    model.freeze_statistics(False)
    model(picture())
    assert not torch.equal(before["stem.norm.running_mean"], model.stem.norm.running_mean)
