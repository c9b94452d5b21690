"""Compiled blocks: the same numbers as plain ones, recomputed too, one block for all of its shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from intern_trainer.blocks import blocks_of
from intern_trainer.errors import EnvironmentFault
from intern_trainer.parallel import compile as compiling
from intern_trainer.parallel import compile_blocks, recompute, sync_batch_norm
from intern_zoo.two_tower import create_two_tower
from torch import Tensor, nn

CPU = torch.device("cpu")
TEXT = {"width": 32, "layers": 2, "heads": 2, "context_length": 16}


def towers() -> Any:
    torch.manual_seed(1)
    model = create_two_tower("metanet_debug", 32, 32, dict(TEXT), {"drop_path_rate": 0.0})
    sync_batch_norm(model, share=False)
    return model


def outcome(block: nn.Module, x_bchw: Tensor) -> dict[str, Tensor]:
    block.zero_grad()
    y_bchw = block(x_bchw)
    y_bchw.square().sum().backward()
    return {"y": y_bchw} | {n: p.grad for n, p in block.named_parameters()} | dict(block.named_buffers())


def test_without_a_compiler_there_is_a_word_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EnvironmentFault, match=r"no-such-compiler[\s\S]*parallel.compile=none"):
        compile_blocks(towers(), "block", CPU)


def test_names_stay_and_evaluation_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, **_: lambda *args, **named: 1 / 0)
    plain, compiled = towers(), towers()
    compile_blocks(compiled, "block", CPU)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(compiled.eval().encode_image(x), plain.eval().encode_image(x))
    with pytest.raises(ZeroDivisionError):
        compiled.train().encode_image(x)


@pytest.mark.slow
@pytest.mark.parametrize("again", ["none", "full"])
def test_numbers_are_those_of_the_plain_blocks(again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tracing, which is where numbers could go wrong; the real back end takes minutes of a C++ compiler."""
    plain, compiled = towers().train(), towers().train()
    inverted = ("image.trunk.stages.3.blocks.0", "image.trunk.stages.3.blocks.1")
    monkeypatch.setattr(compiling, "blocks_of", lambda model: [b for b in blocks_of(model) if b[0] in inverted])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(compiled, "block", CPU, backend="aot_eager")
    recompute(compiled, again)
    x_bchw = torch.randn(4, 64, 2, 2).requires_grad_()
    for name in inverted:
        found, expected = (outcome(model.get_submodule(name), x_bchw) for model in (compiled, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    passes = 1 if again == "none" else 2  # the second one leaves the running statistics
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == passes
