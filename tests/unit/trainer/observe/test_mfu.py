from __future__ import annotations

import pytest
import torch
from intern_trainer.observe.flops import forward_flops
from intern_trainer.observe.mfu import device_peak, peak_flops, utilisation
from torch import nn


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA GH200 480GB", "fp16", 989),
        ("NVIDIA GB200", "bf16", 2500),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("AMD EPYC", "fp32", None),
    ],
)
def test_peaks(name: str, precision: str, tera: float | None) -> None:
    assert peak_flops(name, precision) == (None if tera is None else tera * 1e12)


def test_a_cpu_has_no_known_peak() -> None:
    assert device_peak(torch.device("cpu"), "fp32") is None
    assert utilisation(1e9, 100, 2, None) is None


def test_utilisation_counts_forward_and_backward() -> None:
    assert utilisation(1e9, samples_per_second=100, devices=2, peak=1e12) == pytest.approx(3 * 1e9 * 100 / 2e12)


def test_flops_of_a_known_model() -> None:
    built_on = []

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
        built_on.append(model[0].weight.device.type)
        return model

    assert forward_flops(build, {"input": torch.zeros(1, 8)}) == 2 * (8 * 16 + 16 * 4)
    assert built_on == ["meta"]
