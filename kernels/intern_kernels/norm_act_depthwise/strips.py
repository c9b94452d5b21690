"""How the stencil's kernels divide a map into strips.

A strip is one column of the output, or a part of one: `height` outputs below one another. A program has BLOCK_C
channels of `each` strips, side by side in the map, and walks down BLOCK_R of them at a time: what its strips have in
common with those beside them is read by neighbouring threads, what a row has in common with the next stays in
registers. As in `tiles.py` threads lie along the channels first, and C is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from intern_kernels.launch import Config
from intern_kernels.tiles import PROGRAMS, channel_block
from intern_kernels.tuning import pick

CHANNELS = 64
"""Most channels of a program: half as many as of other kernels, for twice as many strips and half of the halo."""
LEAST = 7
"""Fewest outputs of a part of a column, where the map has so many: of each part two rows more are read."""


def config(c: int, elements: int, num_warps: int = 4, channels: int = CHANNELS) -> Config:
    """Blocks of `elements` a thread."""
    block_c = channel_block(c, channels)
    return Config({"BLOCK_R": max(1, 32 * num_warps * elements // block_c), "BLOCK_C": block_c}, num_warps)


def space(c: int, elements: int) -> list[Config]:
    """The configurations worth timing: half as much a thread, for more threads at once; programs of other sizes."""
    return [
        config(c, at_once, num_warps, channels)
        for at_once in (elements, elements // 2)
        for num_warps in (4, 8)
        for channels in (CHANNELS, 2 * CHANNELS)
    ]


@dataclass(frozen=True)
class Plan:
    """How one launch divides a map."""

    config: Config
    height: int
    """Outputs of a strip."""
    parts: int
    """Strips of a column."""
    strips: int
    each: int
    """Strips of a program."""
    columns: int
    """Programs side by side, along the channels."""
    programs: int
    """Programs one after another, along the strips."""


def plan(kernel: str, out: Tensor, stride: int, elements: int) -> Plan:
    """How `kernel` divides a map, by its output [b, h, w, c]."""
    b, h, w, c = out.shape
    key = (h, w, c, stride, str(out.dtype))
    chosen = pick(kernel, key, config(c, elements), lambda: space(c, elements))
    columns = triton.cdiv(c, chosen["BLOCK_C"])
    whole = triton.cdiv(b * w, chosen["BLOCK_R"]) * columns
    height = triton.cdiv(h, min(triton.cdiv(h, LEAST), triton.cdiv(PROGRAMS, max(1, whole))))
    parts = triton.cdiv(h, height)
    blocks = triton.cdiv(b * parts * w, chosen["BLOCK_R"])
    each = max(1, triton.cdiv(blocks * columns, PROGRAMS)) * chosen["BLOCK_R"]
    return Plan(chosen, height, parts, b * parts * w, each, columns, triton.cdiv(b * parts * w, each))


@triton.jit
def strip_starts(strip, height, parts, width):
    """(sample, in 64 bits for offsets; first row; column) of strips, in the output."""
    column = strip % width
    strip = strip // width
    return (strip // parts).to(tl.int64), (strip % parts) * height, column
