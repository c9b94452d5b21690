"""Triton's interpreter cuts numbers off where they become bf16. GPUs round to the nearest, and so it does here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _bf16_is_rounded_to_nearest() -> Iterator[None]:
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy()
        return convert(data, source, target, mode)

    with mock.patch.object(interpreter, "_convert_float", rounded):
        yield
