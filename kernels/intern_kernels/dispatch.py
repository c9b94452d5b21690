"""Triton or plain torch, for each op: by configuration, device and dtype.

    configure("auto", {"cross_covariance_attention": "torch"})
    if chosen("cross_covariance_attention", q, k, v): ...      # by the caller of an op
    why_not("cross_covariance_attention", q, k, v)             # for logs: "a tensor is on cpu, ..."

Without `configure` all is plain torch: no kernel has run on a GPU yet. `auto` takes a kernel on a GPU that can run it.
`triton` insists: where it cannot run, that is an error with its reason and never another path in silence; on the CPU it
runs in Triton's interpreter (TRITON_INTERPRET=1), which is for tests.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Choice = Literal["auto", "triton", "torch"]
OPS = ("cross_covariance_attention",)
"""Names that configuration may give: the ops that are chosen here."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)
"""Compute capability that the kernels are built for, and newer."""


@dataclass
class _Settings:
    default: Choice = "torch"
    by_op: dict[str, Choice] = field(default_factory=dict)


_settings = _Settings()


def configure(default: Choice = "torch", by_op: Mapping[str, Choice] | None = None) -> None:
    """What all later calls go by, in this process.

    Raises:
        ValueError: an unknown op or choice.
    """
    unknown = set(by_op or {}) - set(OPS)
    if unknown:
        raise ValueError(f"unknown op {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    wrong = {default, *(by_op or {}).values()} - set(get_args(Choice))
    if wrong:
        raise ValueError(f"{', '.join(sorted(wrong))} is none of {', '.join(get_args(Choice))}")
    _settings.default, _settings.by_op = default, dict(by_op or {})


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(op: str, *tensors: Tensor, limit: str | None = None) -> str | None:
    """Why plain torch computes `op` for these tensors; None where its kernel does. `limit`: what the op itself finds
    beyond its kernels in their shapes, if anything."""
    choice = _settings.by_op.get(op, _settings.default)
    if choice == "torch":
        return "the configuration says torch"
    reason = _obstacle(tensors, forced=choice == "triton") or limit
    if reason and choice == "triton":
        raise RuntimeError(f"{op} is to be `triton`, but {reason}; choose `auto` or `torch`")
    return reason


def chosen(op: str, *tensors: Tensor, limit: str | None = None) -> bool:
    """Whether the kernel of `op` computes it for these tensors.

    Raises:
        RuntimeError: the configuration insists on a kernel that cannot run here.
    """
    return why_not(op, *tensors, limit=limit) is None


def _obstacle(tensors: tuple[Tensor, ...], forced: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"a tensor is {tensor.dtype}, and kernels take {', '.join(map(str, DTYPES))}"
        if tensor.device.type == "cuda":
            if torch.cuda.get_device_capability(tensor.device) < OLDEST:
                return f"{torch.cuda.get_device_name(tensor.device)} is older than compute capability 8.0"
        elif not (forced and tensor.device.type == "cpu" and interpreted()):
            return f"a tensor is on {tensor.device.type}, and kernels run on CUDA devices"
    return None
