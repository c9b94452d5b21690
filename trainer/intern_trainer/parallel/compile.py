"""Blocks compiled by torch.compile, each by itself: what one block is, other blocks of its shape are, too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from intern_trainer.blocks import blocks_of
from intern_trainer.errors import EnvironmentFault

Compile = Literal["none", "block"]
COMPILERS = {"cpu": ("CXX", ("g++", "clang++")), "cuda": ("CC", ("gcc", "clang", "cc"))}
"""What torch builds its kernels with: the variable that names it, else the first that is found."""


def compile_blocks(model: nn.Module, mode: Compile, device: torch.device, backend: str = "inductor") -> None:
    """Compile the `forward` of every block of both towers, in place; names do not change. Hooks on a block itself stay
    outside, and evaluation, which comes in batches of many sizes, runs uncompiled. To be called before `recompute`,
    which then repeats the compiled forward pass.

    Raises:
        EnvironmentFault: torch.compile has nothing to build its kernels with.
    """
    if mode == "none":
        return
    if backend == "inductor":
        _check_compiler(device)
    blocks = [block for _, block in blocks_of(model)]
    for norm in (module for block in blocks for module in block.modules() if getattr(module, "reduce_stats", None)):
        norm.reduce_stats = torch.compiler.disable(norm.reduce_stats)  # ranks wait for each other in plain code alone
    # one version of each class's code for each shape, in the first pass and in one that keeps statistics
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
    for block in blocks:
        plain = type(block).forward
        if plain not in compiled:
            compiled[plain] = torch.compile(plain, backend=backend, dynamic=False)
        block.forward = partial(_forward, block, compiled[plain])


def _forward(block: nn.Module, compiled: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    return (compiled if block.training else type(block).forward)(block, *inputs, **named)


def _check_compiler(device: torch.device) -> None:
    variable, known = COMPILERS.get(device.type, COMPILERS["cuda"])
    chosen = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([chosen] if chosen else known)):
        raise EnvironmentFault(
            f"parallel.compile is block, and there is no compiler ({chosen or ', '.join(known)}) on this machine",
            "torch.compile builds its kernels where they run",
            f"install g++, name a compiler in {variable}, or parallel.compile=none",
        )
