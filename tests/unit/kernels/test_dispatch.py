"""Plain torch or a kernel: by configuration, and with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from intern_kernels import dispatch
from intern_kernels.cross_covariance_attention import cross_covariance_attention
from intern_kernels.launch import counting

OP = "cross_covariance_attention"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    dispatch.configure()


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [*(torch.randn(1, 4, 2, 8) for _ in range(3)), torch.ones(2, 1, 1)]


def launches() -> int:
    with counting() as counts:
        cross_covariance_attention(*inputs())
    return sum(counts.values())


def test_unless_asked_no_kernel_runs() -> None:
    assert dispatch.why_not(OP, *inputs()) == "the configuration says torch"
    assert launches() == 0


def test_auto_leaves_the_cpu_to_torch_and_says_why() -> None:
    dispatch.configure("auto")
    assert dispatch.why_not(OP, *inputs()) == "a tensor is on cpu, and kernels run on CUDA devices"
    assert launches() == 0


def test_an_op_by_itself_can_be_told_otherwise() -> None:
    dispatch.configure("torch", {OP: "triton"})
    assert dispatch.chosen(OP, *inputs())
    assert launches() == 1
    dispatch.configure("triton", {OP: "torch"})
    assert launches() == 0


def test_a_kernel_that_is_insisted_on_and_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch.configure("triton")
    with pytest.raises(RuntimeError, match=r"cross_covariance_attention is to be `triton`, but a tensor is .*float64"):
        dispatch.chosen(OP, torch.zeros(1).double())
    with pytest.raises(RuntimeError, match="but heads are too wide; choose `auto` or `torch`"):
        dispatch.chosen(OP, torch.zeros(1), limit="heads are too wide")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="a tensor is on cpu"):
        dispatch.chosen(OP, torch.zeros(1))


def test_names_and_choices_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown op xca; there are cross_covariance_attention"):
        dispatch.configure("auto", {"xca": "torch"})
    with pytest.raises(ValueError, match="cuda is none of auto, triton, torch"):
        dispatch.configure("cuda")  # type: ignore[arg-type]
