"""Normalise, activate, scale, add to a residual: one pass each way. See README.md."""

from intern_kernels.normalise.op import normalise

__all__ = ["normalise"]
