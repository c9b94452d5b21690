"""Released names in and out, with the prefixes that wrappers add, and errors that name the keys."""

from __future__ import annotations

import pytest
import torch
from intern_zoo import StateDictError, create_model
from intern_zoo.metanet import MetaNet
from intern_zoo.metanet.state_dict import from_released, load_released, to_released


def _model(num_classes: int = 0, seed: int = 0) -> MetaNet:
    torch.manual_seed(seed)
    model = create_model("metanet_debug", num_classes=num_classes)
    assert isinstance(model, MetaNet)
    return model


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_round_trip(prefix: str) -> None:
    source, target = _model(7), _model(7, seed=1)
    weights = {prefix + name: tensor for name, tensor in to_released(source).items()}
    load_released(target, weights)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name
    assert list(from_released(source, weights)) == list(source.state_dict())


def test_every_released_name_is_used_once() -> None:
    model = _model(7)
    assert len(to_released(model)) == len(model.state_dict())
    assert not any("stages" in name or "shortcut" in name for name in to_released(model))


def test_other_weights_under_the_models_names() -> None:
    model = _model()
    average = {name: tensor.float() + 1 for name, tensor in model.state_dict().items()}
    assert torch.equal(to_released(model, average)["stem.0.weight"], average["stem.conv.weight"])


def test_the_classifier_of_a_file_may_be_left_out() -> None:
    load_released(_model(), to_released(_model(7, seed=1)))


def test_all_wrong_keys_are_named_in_one_error() -> None:
    weights = to_released(_model())
    del weights["blocks.0.b2.0.fc1.bias"]
    weights["stem.0.weight"] = torch.zeros(4, 3, 3, 3)
    weights["neck.conv.weight"] = torch.zeros(2)
    model = _model(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StateDictError) as caught:
        load_released(model, weights)
    message = str(caught.value)
    assert "missing: blocks.0.b2.0.fc1.bias [8]" in message
    assert "left over: neck.conv.weight [2]" in message
    assert "misshaped: stem.0.weight is [4, 3, 3, 3], the model's is [16, 3, 3, 3]" in message
    assert message.startswith("3 keys")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_of_another_variant_is_refused() -> None:
    with pytest.raises(StateDictError, match="keys do not fit"):
        load_released(_model(), to_released(create_model("uninet_b0", num_classes=0)))  # type: ignore[arg-type]
