"""Kernels' tests run in Triton's interpreter, with the conversions to and from bf16 of a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def bf16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter drops the lower bits of what it makes bf16; GPUs, and torch, round to the nearest, ties to even.
    It is also a hundred times slower at it than this."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def cast_impl(self: InterpreterBuilder, source: Any, to: Any) -> Any:
        pair = (source.dtype.scalar, to.scalar)
        if pair == (tl.bfloat16, tl.float32):
            return TensorHandle((source.data.astype(np.uint32) << 16).view(np.float32), to.scalar)
        if pair == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(source.data).view(np.uint32)
            nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return TensorHandle(np.where(np.isnan(source.data), 0x7FC0, nearest).astype(np.uint16), to.scalar)
        return cast(self, source, to)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
