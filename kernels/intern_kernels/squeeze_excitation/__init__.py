"""Normalise, activate, gate each channel by a function of all channels' means. See README.md."""

from intern_kernels.squeeze_excitation.op import squeeze_excitation

__all__ = ["squeeze_excitation"]
