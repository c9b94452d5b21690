"""Mean and deviation over the channels of each position, for layer normalisation. See README.md."""

from intern_kernels.position_moments.op import with_position_moments

__all__ = ["with_position_moments"]
