"""The kernels of `squeeze_excitation` against plain torch in fp64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from intern_kernels.launch import Launch, counting, instead
from intern_kernels.squeeze_excitation import reference as plain
from intern_kernels.squeeze_excitation import squeeze_excitation
from intern_kernels.squeeze_excitation.op import gate_activated, gated_gradient, gated_sums, pool_activated
from torch import Tensor, nn

from tests.unit.kernels.checking import Case, assert_not_finite_alike, compare, covering, noise
from tests.unit.kernels.norms import FORMS, norm_inputs


def _mixing_gate(u_bc: Tensor) -> Tensor:
    """Of all channels; made in fp32 at least, so that errors are the op's."""
    wide_bc = u_bc.to(torch.promote_types(u_bc.dtype, torch.float32))
    return torch.sigmoid(wide_bc + wide_bc.mean(1, keepdim=True)).to(u_bc.dtype)


def _inputs(
    form: str, b: int = 2, h: int = 3, w: int = 5, c: int = 24, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    x_bhwc = noise(b, h, w, c, dtype=dtype, seed=1, scale=1.5, shift=0.5)
    return {"x_bhwc": x_bhwc, **norm_inputs(form, b, h, w, c, dtype), "act": "gelu_tanh", "gate": _mixing_gate}


def _gradients(op: Callable[..., Tensor], inputs: dict[str, Any], *others: Tensor) -> list[Tensor]:
    """The output, and the gradients of all inputs that want one."""
    out = op(**inputs)
    asked = [value for value in inputs.values() if isinstance(value, Tensor) and value.requires_grad]
    weights = noise(*out.shape, dtype=out.dtype, seed=9).detach()
    return [out, *torch.autograd.grad(out, [*asked, *others], weights)]


@pytest.mark.parametrize("case", covering(form=FORMS, act=("none", "gelu", "gelu_tanh")), ids=str)
def test_equals_plain_torch(case: Case) -> None:
    inputs = _inputs(case["form"], case.b, case.h, case.w, case.c, case.dtype)
    compare(squeeze_excitation, plain.squeeze_excitation, inputs | {"act": case["act"]}, case.dtype)


def test_a_gate_of_modules_gets_its_gradients() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 24), nn.Hardsigmoid())
    theirs = copy.deepcopy(ours)
    inputs = _inputs("channel")
    got = _gradients(squeeze_excitation, inputs | {"gate": ours}, *ours.parameters())
    want = _gradients(plain.squeeze_excitation, inputs | {"gate": theirs}, *theirs.parameters())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_gate_that_looks_at_nothing() -> None:
    inputs = _inputs("channel") | {"gate": lambda u_bc: torch.full_like(u_bc, 0.25)}
    torch.testing.assert_close(_gradients(squeeze_excitation, inputs), _gradients(plain.squeeze_excitation, inputs))


def test_other_uses_of_the_map_are_added() -> None:
    """What the two nodes tell each other in place of gradients must not leak into x's own."""

    def twice(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x_bhwc: Tensor, **rest: Any) -> Tensor:
            return op(x_bhwc, **rest) * x_bhwc + op(x_bhwc, **rest)

        return run

    inputs = _inputs("position")
    got, want = (_gradients(twice(op), inputs) for op in (squeeze_excitation, plain.squeeze_excitation))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_one_pass_makes_all_sums() -> None:
    with counting() as launches:
        _gradients(squeeze_excitation, _inputs("channel"))
    kernels = ("pool_activated", "gate_activated", "gated_sums", "gated_gradient")
    assert launches == {f"{name}_kernel": 1 for name in kernels}


@pytest.mark.parametrize("form", FORMS)
def test_ops_keep_their_word(form: str) -> None:
    x, *norm, act, gate = _inputs(form).values()
    x, *norm = (tensor if tensor is None else tensor.detach() for tensor in (x, *norm))
    u_bc = pool_activated(x, *norm, act)
    torch.library.opcheck(pool_activated, (x, *norm, act))
    torch.library.opcheck(gate_activated, (x, *norm, act, gate(u_bc)))
    torch.library.opcheck(gated_sums, (x, x, *norm, act, form != "none"))
    torch.library.opcheck(gated_gradient, (x, x, *norm, act, gate(u_bc), u_bc, True, form == "position"))


def test_compiles_without_a_break() -> None:
    inputs = _inputs("channel")
    compiled = torch.compile(squeeze_excitation, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(_gradients(compiled, inputs), _gradients(squeeze_excitation, inputs))


def test_refuses_what_does_not_lie_channels_last() -> None:
    inputs = _inputs("channel")
    with pytest.raises(ValueError, match=r"x has shape .* call x.contiguous"):
        squeeze_excitation(**inputs | {"x_bhwc": inputs["x_bhwc"].detach().transpose(1, 2)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_strange_numbers_stay_where_they_belong(form: str, strange: float) -> None:
    inputs = _inputs(form, c=40) | {"gate": lambda u_bc: torch.sigmoid(u_bc)}
    with torch.no_grad():
        inputs["x_bhwc"][1, 2, 3, 39] = strange
    got, want = (_gradients(op, inputs) for op in (squeeze_excitation, plain.squeeze_excitation))
    assert not got[0].isfinite().all()
    assert_not_finite_alike(got, want)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_launches_nothing(form: str) -> None:
    inputs = _inputs(form, b=0)
    with counting() as launches:
        out, *gradients = _gradients(squeeze_excitation, inputs)
    assert not launches
    assert out.shape == (0, 3, 5, 24)
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_twice_gives_the_same_bits() -> None:
    inputs = _inputs("channel", h=14, w=14, dtype=torch.bfloat16)
    first, second = (_gradients(squeeze_excitation, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("asked", "sums", "made"),
    [(["x_bhwc"], 1, {"dx_ptr"}), (["weight_c"], 5, set()), (["x_bhwc", "rstd"], 1, {"dx_ptr", "row_ptr"})],
)
def test_makes_no_gradient_that_nobody_asks_for(asked: list[str], sums: int, made: set[str]) -> None:
    inputs = _inputs("position")
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            inputs[name] = value.detach().requires_grad_(name in asked)
    launches: list[Launch] = []
    with instead(launches.append):
        _gradients(squeeze_excitation, inputs)
    given = {
        launch.name: dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | dict(launch.constants)
        for launch in launches
    }
    assert given["gated_sums_kernel"]["SUMS"] == sums
    gradient = given.get("gated_gradient_kernel", {"dx_ptr": None, "row_ptr": None})
    assert {name for name in ("dx_ptr", "row_ptr") if gradient[name] is not None} == made
