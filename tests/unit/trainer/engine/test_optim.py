"""Parameter groups, the learning rate, and optimizers that are not built."""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

import pytest
import torch
from intern_trainer.config.schema import Config
from intern_trainer.engine.layout import share_out
from intern_trainer.engine.optimizers import build_optimizer
from intern_trainer.errors import ConfigError, EnvironmentFault
from intern_trainer.optim import describe_groups, learning_rate, parameter_groups
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        return {"temperature"}


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def test_norms_biases_and_named_parameters_do_not_decay() -> None:
    groups = parameter_groups(Net(), config(optim={"weight_decay": 0.3}))
    assert [(group["name"], group["weight_decay"], group["names"]) for group in groups] == [
        ("decay", 0.3, ["conv.weight"]),
        ("no_decay", 0.0, ["temperature", "conv.bias", "norm.weight", "norm.bias"]),
    ]
    rows = describe_groups(groups)
    assert [(row["tensors"], row["parameters"], row["kinds"]) for row in rows] == [
        (1, 108, ["weight"]),
        (4, 14, ["bias", "temperature", "weight"]),
    ]


def test_a_group_without_parameters_is_left_out() -> None:
    assert [group["name"] for group in parameter_groups(nn.Linear(2, 2, bias=False), config())] == ["decay"]


def test_the_learning_rate_warms_up_and_falls_to_its_minimum() -> None:
    cosine = config(train={"steps": 110}, optim={"lr": 1.0, "schedule": {"warmup_steps": 10, "min_lr": 0.1}})
    rates = [learning_rate(step, cosine) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(110, cosine) == pytest.approx(0.1)
    constant = config(train={"steps": 100}, optim={"lr": 0.5, "schedule": {"kind": "constant", "warmup_steps": 2}})
    assert [learning_rate(step, constant) for step in (0, 1, 2, 99)] == [0.25, 0.5, 0.5, 0.5]
    declip = config(train={"steps": 9}, optim={"lr": 1.0, "schedule": {"warmup_steps": 4, "start_lr": 0.2}})
    assert [learning_rate(step, declip) for step in range(5)] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])


def make(name: str, device: str = "cpu") -> torch.optim.Optimizer:
    settings = config(optim={"name": name})
    return build_optimizer(parameter_groups(Net(), settings), settings, torch.device(device), offload=False)


def test_adamw_is_torchs_fused_and_keeps_the_groups() -> None:
    optimizer = make("adamw")
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(group["weight_decay"], group["fused"]) for group in optimizer.param_groups] == [(0.1, True), (0.0, True)]


def test_apex_that_is_not_there_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(EnvironmentFault, match="not installed") as raised:
        make("apex_fused_adam")
    assert "git+https://github.com/NVIDIA/apex" in raised.value.fix
    assert "--cuda_ext" in raised.value.fix


def test_the_other_apex_of_pypi_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("apex")
    monkeypatch.setitem(sys.modules, "apex", other)
    with pytest.raises(EnvironmentFault) as raised:
        make("apex_fused_lamb")
    assert "another project" in raised.value.rule
    assert raised.value.fix.startswith("pip uninstall apex")


def test_apex_without_its_extensions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unbuilt(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

    nvidia = types.ModuleType("apex")
    nvidia.optimizers = types.SimpleNamespace(FusedAdam=unbuilt)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", nvidia)
    with pytest.raises(EnvironmentFault, match="this is cpu"):
        make("apex_fused_adam")
    with pytest.raises(EnvironmentFault, match="requires cuda extensions"):
        make("apex_fused_adam", "cuda")


def test_a_compiled_optimizer_without_compiler_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Error building extension 'fused_adam'")

    fake = types.SimpleNamespace(ops=types.SimpleNamespace(adam=types.SimpleNamespace(FusedAdam=broken)))
    monkeypatch.setattr("intern_trainer.engine.optimizers.load_deepspeed", lambda: fake)
    with pytest.raises(EnvironmentFault, match="fused_adam") as raised:
        make("ds_fused_adam")
    assert "g++ and ninja" in raised.value.fix


def test_deepspeeds_cpu_adam_needs_weights_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match="ds_cpu_adam"):
        make("ds_cpu_adam", "cuda")


def test_replicated_tensors_are_shared_out_evenly() -> None:
    owners = share_out([100, 1, 50, 50, 1], 2)
    loads = [
        sum(size for size, owner in zip([100, 1, 50, 50, 1], owners, strict=True) if owner == rank) for rank in (0, 1)
    ]
    assert loads == [101, 101]
    assert share_out([5, 7], 1) == [0, 0]
