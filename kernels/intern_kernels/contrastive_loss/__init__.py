"""InfoNCE between local queries and all keys (the op of the CLIP loss)."""

from intern_kernels.contrastive_loss.reference import info_nce

__all__ = ["info_nce"]
