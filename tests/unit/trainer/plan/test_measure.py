"""What is measured on fake tensors: against real saved tensors, and against the reference cost model's figures."""

from __future__ import annotations

from functools import cache
from typing import Any

import intern_zoo
import pytest
import torch
from intern_trainer.blocks import blocks_of
from intern_trainer.plan.hardware import DEVICES, Cluster
from intern_trainer.plan.measure import Cost, measure
from intern_trainer.plan.memory import activations, recomputed
from intern_trainer.plan.speed import seconds
from intern_zoo import flops
from intern_zoo.two_tower import create_two_tower
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

TEXT = {"width": 32, "layers": 2, "heads": 2, "context_length": 16}
SAMPLES = 4


def towers() -> Any:
    return create_two_tower("metanet_debug", 64, 32, dict(TEXT))


def inputs() -> dict[str, Tensor]:
    return {"image": torch.zeros(SAMPLES, 3, 64, 64), "text": torch.full((SAMPLES, 16), 49407)}


@cache
def measured() -> Cost:
    with torch.device("meta"):
        model = towers()
    return measure(model, inputs, blocks_of(model), torch.float32)


def really_saved(model: nn.Module) -> int:
    """Bytes of the distinct storages that a forward pass saves, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # alive: no other can have its address
        return tensor

    model.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs())
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def test_activations_are_those_that_autograd_saves() -> None:
    assert measured().saved == pytest.approx(really_saved(towers()), rel=0.01)


def test_full_recompute_keeps_the_units_inputs() -> None:
    model = towers()
    model.set_grad_checkpointing()
    cost = measured()
    planned = activations(cost, recomputed(cost, "full"), SAMPLES)
    assert planned.saved == pytest.approx(really_saved(model), rel=0.02)
    plain = activations(cost, recomputed(cost, "none"), SAMPLES)
    some = activations(cost, recomputed(cost, "selective"), SAMPLES)
    assert planned.saved < some.saved < plain.saved


def test_activations_grow_with_the_samples() -> None:
    cost = measured()
    assert activations(cost, (), 3 * SAMPLES).saved == 3 * activations(cost, (), SAMPLES).saved


def measured_images(model: Any, samples: int) -> Cost:
    units = [(str(i), unit) for i, unit in enumerate(model.units())]
    return measure(model, lambda: {"x_bchw": torch.zeros(samples, 3, 224, 224)}, units, torch.bfloat16)


def test_a_small_network_costs_what_the_reference_model_says() -> None:
    """UniNet-B1 at 224 pixels: 1.09 G multiply-adds, 64 MB of activations a picture."""
    counted = flops(model_on_meta("uninet_b1"), 224)
    cost = measured_images(model_on_meta("uninet_b1"), 8)
    assert counted == pytest.approx(2 * 1.09e9, rel=0.01)
    assert sum(op.flops for unit in cost.units for op in unit.forward) / 8 == pytest.approx(counted, rel=1e-3)
    assert cost.saved / 8 == pytest.approx(64e6, rel=0.08)
    assert sum(op.flops for op in cost.backward) / 8 == pytest.approx(2 * counted, rel=0.05)


@pytest.mark.slow
def test_a_billion_parameters_cost_what_the_reference_model_says() -> None:
    """MetaNet-1B at 224 pixels: 178 GFLOP, 951 MB a picture; on an H100, 128 of them 121.1 ms forward and 233.6 ms
    backward, by the rooflines of its eager form."""
    model = model_on_meta("metanet_1b")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(998.6e6, rel=1e-4)
    assert flops(model, 224) == pytest.approx(178e9, rel=1e-3)
    cost = measured_images(model, 128)
    forward = [op for unit in cost.units for op in unit.forward]
    assert cost.saved / 128 == pytest.approx(951e6, rel=0.02)
    cluster = Cluster(DEVICES["H100"], 1, 8, efficiency=1.0)
    assert seconds(forward, cluster, "bf16") == pytest.approx(121.1e-3, rel=0.1)
    assert seconds(cost.backward, cluster, "bf16") == pytest.approx(233.6e-3, rel=0.15)


def model_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return intern_zoo.create_model(name, num_classes=0)


def test_ten_billion_parameters_are_the_reference_models() -> None:
    model = model_on_meta("metanet_10b")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(10.017e9, rel=1e-4)
    assert flops(model, 224) == pytest.approx(1513e9, rel=1e-3)
