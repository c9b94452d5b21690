"""Sums and sums of squares of each channel, for batch normalisation. See README.md."""

from intern_kernels.channel_sums.op import channel_sums, with_channel_sums

__all__ = ["channel_sums", "with_channel_sums"]
