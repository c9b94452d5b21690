"""How kernels that take each element of a map once divide it, seen as rows of channels [rows, c].

A program has BLOCK_C channels of `each` consecutive rows and goes through them BLOCK_R rows at a time, so that what
belongs to its channels (statistics, weights, running sums) stays in registers. Threads lie along the channels first,
8 a thread: 16-byte loads of half-precision numbers. C is a constant of each kernel: that tells Triton what divides it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from intern_kernels.launch import Config
from intern_kernels.tuning import pick

CHANNELS = 128
"""Most channels of a program: 256 bytes of a row in half precision."""
PROGRAMS = 8 * 132
"""How many programs a large map is divided among: 8 for each multiprocessor of an H100. It bounds partial sums, too."""
ROWS = 128
"""Fewest rows of a program, if there are so many: below, loading what belongs to its channels would count."""


def channel_block(c: int, most: int = CHANNELS) -> int:
    """BLOCK_C: `most`, or the power of two from 32 on that divides c; all of fewer than 32 channels."""
    divisor = gcd(c, most)
    return divisor if divisor >= 32 else min(most, triton.next_power_of_2(c))


def config(c: int, elements: int, num_warps: int = 4) -> Config:
    """Blocks of `elements` a thread: 8 where many sums are kept, 16 where what is loaded goes out again."""
    block_c = channel_block(c)
    return Config({"BLOCK_R": max(1, 32 * num_warps * elements // block_c), "BLOCK_C": block_c}, num_warps)


def space(c: int, elements: int) -> list[Config]:
    """The configurations worth timing: programs of other sizes, and twice as much at once."""
    return [config(c, at_once, num_warps) for at_once in (elements, 2 * elements) for num_warps in (2, 4, 8)]


@dataclass(frozen=True)
class Plan:
    """How one launch divides a map."""

    config: Config
    rows: int
    each: int
    """Rows of a program."""
    columns: int
    """Programs side by side, along the channels."""
    programs: int
    """Programs one below the other, along the rows."""


def plan(kernel: str, x: Tensor, elements: int, samples: int = 1) -> Plan:
    """How `kernel` divides x [..., c], or each of `samples` equal parts of it."""
    c = x.shape[-1]
    chosen = pick(kernel, (c, str(x.dtype)), config(c, elements), lambda: space(c, elements))
    columns = triton.cdiv(c, chosen["BLOCK_C"])
    rows = x.numel() // (c * samples) if x.numel() else 0
    each = max(min(ROWS, rows), triton.cdiv(rows * columns * samples, PROGRAMS), 1)
    each = triton.cdiv(each, chosen["BLOCK_R"]) * chosen["BLOCK_R"]
    return Plan(chosen, rows, each, columns, triton.cdiv(rows, each))


@triton.jit
def program_channels(C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels [BLOCK_C] of a program (the first axis of the grid), and which of them there are."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    return c, c < C


@triton.jit
def program_rows(rows, each):
    """The first of a program's rows (the second axis of the grid; 64 bits, for offsets), and their count."""
    first = tl.program_id(1).to(tl.int64) * each
    return first, tl.minimum(rows - first, each).to(tl.int32)


@triton.jit
def load_fp32(pointers, inside):
    """What lies there in fp32, 0 outside."""
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
