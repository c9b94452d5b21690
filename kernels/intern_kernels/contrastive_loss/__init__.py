"""Contrastive losses between local queries and many keys, in memory that does not grow with the number of keys. See
README.md."""

from intern_kernels.contrastive_loss.info_nce import info_nce, log_sums
from intern_kernels.contrastive_loss.reference import Best, LogSums, SigmoidTerms, sigmoid_terms
from intern_kernels.contrastive_loss.sigmoid import sigmoid_loss, with_gradients

__all__ = ["Best", "LogSums", "SigmoidTerms", "info_nce", "log_sums", "sigmoid_loss", "sigmoid_terms", "with_gradients"]
