"""What every kernel's test needs: the covering cases, inputs, the comparison with fp64, and poisoned memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

BOUNDS = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Largest relative RMS error against fp64, by the dtype of the activations. Rounding a result once costs 2e-4 (fp16)
or 1.6e-3 (bf16); what is made from a stored, rounded tensor and is rounded again costs 1.4 times that."""

SHAPES: tuple[tuple[int, int, int, torch.dtype], ...] = (
    (1, 1, 1000, torch.float32),
    (1, 1, 8, torch.bfloat16),
    (1, 1, 384, torch.float16),
    (7, 7, 24, torch.float32),
    (7, 7, 768, torch.bfloat16),
    (7, 7, 1000, torch.float16),
    (14, 14, 96, torch.float32),
    (14, 14, 24, torch.bfloat16),
    (14, 14, 384, torch.float16),
    (63, 65, 8, torch.float32),
    (63, 65, 8, torch.bfloat16),
)
"""(h, w, c, dtype): every size, width and dtype; the large map only with 8 channels."""


@dataclass(frozen=True)
class Case:
    """One row of the covering set. `options` are those that an op added, by name."""

    b: int
    h: int
    w: int
    c: int
    dtype: torch.dtype
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{self.b}x{self.h}x{self.w}x{self.c}", str(self.dtype).removeprefix("torch.")]
        return "-".join([*words, *(f"{name}={value}" for name, value in self.options.items())])

    def __getitem__(self, option: str) -> Any:
        return self.options[option]


def covering(**options: Sequence[Any]) -> list[Case]:
    """Eleven cases in which every size, width, dtype and every value of each option appears.

    All combinations of the options are gone through in steps of about 0.6 of their number, so that few cases mix
    them well. Use: @pytest.mark.parametrize("case", covering(stride=(1, 2)), ids=str)
    """
    mixes = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    step = next(s for s in range(math.ceil(0.6 * len(mixes)), 2 * len(mixes) + 1) if math.gcd(s, len(mixes)) == 1)
    cases = [
        Case(1 if h * w * c > 30_000 else 2, h, w, c, dtype, mixes[i * step % len(mixes)])
        for i, (h, w, c, dtype) in enumerate(SHAPES)
    ]
    for name, values in options.items():
        assert {case[name] for case in cases} == set(values), f"{name} is not covered"
    return cases


def noise(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Normal numbers, rounded to `dtype`: a leaf that asks for its gradient."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * scale + shift).to(dtype).requires_grad_()


def relative_rms(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|; the plain norm of the difference where nothing is wanted; inf if `got` is not finite."""
    error, size = (got.double() - want.double()).norm().item(), want.double().norm().item()
    return math.inf if not math.isfinite(error) else error / size if size else error


def exact(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs with floating-point tensors as fp64 leaves."""
    return {name: _exact(value) for name, value in inputs.items()}


def compare(
    op: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Mapping[str, Any],
    dtype: torch.dtype,
    bounds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Hold values and all gradients of `op(**inputs)` against `reference` in fp64.

    Outputs (a tensor, or a sequence of tensors and None) are called 0, 1, ...; gradients "d <input>". Each that the
    reference has must be there, in the dtype of the op's input, within BOUNDS[dtype] or the bound given by its name.
    Returns the errors by name.
    """
    wide = exact(inputs)
    with poisoned():
        got, want = _outputs(op(**inputs)), _outputs(reference(**wide))
        assert [value is None for value in got] == [value is None for value in want]
        errors = {str(i): relative_rms(g, w) for i, (g, w) in enumerate(zip(got, want, strict=True)) if g is not None}
        asked = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad]
        ours = _gradients(got, [inputs[name] for name in asked])
    theirs = _gradients(want, [wide[name] for name in asked])
    for name, our, their in zip(asked, ours, theirs, strict=True):
        assert (our is None) == (their is None), f"d {name}: {'missing' if our is None else 'not expected'}"
        if our is not None and their is not None:
            assert our.dtype == inputs[name].dtype, f"d {name} is {our.dtype}"
            errors[f"d {name}"] = relative_rms(our, their)
    wrong = {name: e for name, e in errors.items() if not e <= (bounds or {}).get(name, BOUNDS[dtype])}
    assert not wrong, f"beyond the bounds: {wrong}; all: {errors}"
    return errors


def assert_not_finite_alike(got: Any, want: Any) -> None:
    """Exactly the elements that are not finite in one are not finite in the other (tensors, or sequences of them)."""
    for i, (g, w) in enumerate(zip(_outputs(got), _outputs(want), strict=True)):
        if g is not None:
            assert torch.equal(g.isfinite(), w.isfinite()), f"output {i}: infinities or NaNs elsewhere"


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that `torch.empty` and its kin hand out is full of NaN (integers: the largest), as if left by others."""
    with (
        mock.patch.object(torch, "empty", _poisoning(torch.empty)),
        mock.patch.object(torch, "empty_like", _poisoning(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", _poisoning(Tensor.new_empty)),
    ):
        yield


def _poisoning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned_empty(*args: Any, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        if made.is_floating_point():
            return made.fill_(math.nan)
        return made if made.dtype == torch.bool else made.fill_(torch.iinfo(made.dtype).max)

    return poisoned_empty


def _exact(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def _outputs(result: Any) -> list[Any]:
    return [result] if isinstance(result, Tensor) else list(result)


def _gradients(outputs: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of Σ weight · output, with fixed weights of each output that are the same numbers in every dtype."""
    live = [(i, out) for i, out in enumerate(outputs) if out is not None and out.requires_grad]
    if not live:
        return [None] * len(inputs)
    weights = [noise(*out.shape, dtype=torch.bfloat16, seed=1000 + i).detach().to(out.dtype) for i, out in live]
    return torch.autograd.grad([out for _, out in live], list(inputs), weights, allow_unused=True)
