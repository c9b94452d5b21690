"""Stochastic depth: by a factor of 0 for the dropped samples, or by computing the kept ones alone."""

from __future__ import annotations

import copy

import pytest
import torch
from intern_zoo import create_model
from intern_zoo.errors import ModelConfigError
from intern_zoo.metanet.blocks import BlockShape, make_block
from intern_zoo.metanet.layers import Drawn, DropPath
from intern_zoo.metanet.norm import BatchNorm
from intern_zoo.metanet.steps import add_branch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

KINDS = ("mbconv", "fused_mbconv", "attention", "xca")


def block(kind: str, norm: str = "layer", outputs: int = 8) -> nn.Module:
    """A block whose branch is not zero at the start."""
    stride = 1 if outputs == 8 else 2
    shape = BlockShape(kind, 8, outputs, stride, 2, 0.4, "rows", 4, "gelu", norm, "hidden", 0.5)
    torch.manual_seed(0)
    made = make_block(shape).train()
    for name, parameter in made.named_parameters():
        if name.endswith(("norm_out.weight", "gamma")):
            nn.init.uniform_(parameter, 0.5, 1.0)
    return made


def maps(b: int = 5) -> torch.Tensor:
    return torch.randn(b, 8, 6, 4, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)


def test_the_mask_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, residual, x = DropPath(0.25), torch.full((4000, 2, 3, 1), 5.0), torch.ones(4000, 2, 3, 1)
    y = add_branch(residual, x, torch.clone, nn.Identity(), drop(x)) - 5.0
    per_sample = y.flatten(1)
    assert per_sample.eq(per_sample[:, :1]).all()
    assert per_sample[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert drop.eval()(x) is None
    assert torch.equal(add_branch(residual, x, torch.clone, nn.Identity(), None), residual + 1)


@pytest.mark.parametrize(("b", "rate", "kept"), [(10, 0.3, 7), (16, 0.03, 16), (8, 0.06, 8), (8, 0.1, 7), (1, 0.9, 1)])
def test_rows_are_a_fixed_number_and_each_is_kept_as_often_as_any_other(b: int, rate: float, kept: int) -> None:
    torch.manual_seed(0)
    drop, sizes, total = DropPath(rate, "rows"), set(), torch.zeros(b).double()
    for _ in range(400):

        def branch(x: torch.Tensor) -> torch.Tensor:
            sizes.add(len(x))
            return x

        zeros, ones = torch.zeros(b, 1, 1).double(), torch.ones(b, 1, 1).double()
        total += add_branch(zeros, ones, branch, nn.Identity(), drop(ones)).flatten()
    assert sizes == {kept}
    assert (total / 400).tolist() == pytest.approx([1.0] * b, abs=0.15)
    assert total.sum().item() / 400 == pytest.approx(b)  # the scale makes up for the dropped ones in each batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [8, 12])
def test_rows_equal_the_masked_form_with_the_same_rows(
    kind: str, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, gradients of input and weights: the masked form computes all rows and multiplies by b / k or 0."""
    by_rows = block(kind, outputs=outputs)
    by_mask, rows = copy.deepcopy(by_rows), torch.tensor([3, 0, 4])
    monkeypatch.setattr(torch, "randperm", lambda b, device: torch.tensor([3, 0, 4, 1, 2]))
    x, z = maps().requires_grad_(), maps().requires_grad_()
    y = by_rows(x)
    factor = torch.zeros(5).index_fill(0, rows, 5 / 3)
    monkeypatch.setattr(DropPath, "forward", lambda _, x: Drawn(factor, None))
    expected = by_mask(z)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    weight = torch.linspace(-1, 1, y.numel()).view(y.shape)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, z.grad)
    for (name, a), b in zip(by_rows.named_parameters(), by_mask.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_batch_norm_sees_the_kept_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", lambda b, device: torch.tensor([3, 0, 4, 1, 2]))
    made, x = block("mbconv", "batch"), maps()
    made(x)
    norm = made.norm_in
    assert isinstance(norm, BatchNorm)
    kept = x[[3, 0, 4]].mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.1 * kept)


def test_dropped_rows_cost_nothing_and_the_mean_over_draws_is_the_whole_branch() -> None:
    torch.manual_seed(0)
    model = create_model("metanet_debug", num_classes=0, norm="layer", drop_path_rate=0.5, drop_path_mode="rows")
    counts = []
    for drops in (True, False):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.train(drops)(torch.randn(8, 3, 64, 64))
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.9 * counts[1]  # the rate rises from 0 to 0.5, and the first blocks cost most
    made = block("xca")
    mean = torch.stack([made(maps()) for _ in range(300)]).mean(0)
    torch.testing.assert_close(mean, made.eval()(maps()), rtol=0.1, atol=0.12)


def test_recompute_and_half_precision() -> None:
    options = {"num_classes": 0, "drop_path_rate": 0.5, "drop_path_mode": "rows"}
    torch.manual_seed(0)
    plain = create_model("metanet_debug", **options).train()
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing()
    for model in (plain, recomputed):
        torch.manual_seed(3)
        model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    y = plain.bfloat16()(torch.randn(4, 3, 64, 64).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="drop_path_mode is 'row'"):
        create_model("metanet_debug", drop_path_mode="row")
