"""safetensors files written piece by piece read back as what was written."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from intern_zoo.errors import StateDictError
from intern_zoo.hf.state_dict import read_folder
from intern_zoo.hf.weights import INDEX, write_weights
from safetensors.torch import load_file

STATE = {
    "model.a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "model.count": torch.tensor(7),
    "model.half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "model.empty": torch.zeros(0, 3),
    "model.t": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
}


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (50, 2), (1, 4)])
def test_reads_back(tmp_path, limit, files):
    total = write_weights(tmp_path, STATE, reversed(STATE.items()), limit)
    assert total == 48 + 8 + 4 + 0 + 24
    written = sorted(tmp_path.glob("*.safetensors"))
    assert len(written) == files
    merged = {name: tensor for file in written for name, tensor in load_file(file).items()}
    assert merged.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert merged[name].dtype == tensor.dtype
        assert torch.equal(merged[name], tensor), name
    assert (tmp_path / INDEX).exists() == (files > 1)
    if files > 1:
        weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
        assert all(name in load_file(tmp_path / file) for name, file in weight_map.items())
    assert {name for name, _ in read_folder(tmp_path)} == {name.removeprefix("model.") for name in STATE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.a": None}, r"1 tensor\(s\) are missing, such as model.a"),
        ({"model.b": torch.zeros(1)}, "model.b is not in the model"),
        ({"model.a": torch.zeros(4, 3)}, r"model.a has shape \[4, 3\], the model's has \[3, 4\]"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, change, message):
    weights = {name: tensor for name, tensor in {**STATE, **change}.items() if tensor is not None}
    with pytest.raises(StateDictError, match=message):
        write_weights(tmp_path, STATE, weights.items(), 10**9)


def test_holds_one_tensor_at_a_time(tmp_path):
    expected = {f"model.{i}": torch.empty(1000, device="meta") for i in range(6)}
    alive: list[weakref.ref] = []
    most = 0

    def stream():
        nonlocal most
        for name in expected:
            tensor = torch.zeros(1000)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield name, tensor

    write_weights(tmp_path, expected, stream(), 8000)
    assert most <= 2  # the one just made, and the one that the writer still names
