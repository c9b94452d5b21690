"""Cross-covariance attention (XCA): attention between channels instead of between positions. See README.md."""

from intern_kernels.cross_covariance_attention.reference import cross_covariance_attention

__all__ = ["cross_covariance_attention"]
