"""Normalise, activate, convolve each channel 3x3, and sum the result: one pass each way. See README.md."""

from intern_kernels.norm_act_depthwise.op import norm_act_depthwise

__all__ = ["norm_act_depthwise"]
