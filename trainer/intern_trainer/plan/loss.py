"""Bytes that the losses hold beside the towers' activations.

Legend: b rows of a rank's loss, g of all ranks, e width of the features, w bytes of a feature.
"""

from __future__ import annotations

from intern_trainer.config.schema import Config
from intern_trainer.plan.settings import BYTES
from intern_trainer.text import text_tokenizer

FP32 = 4
SCORES = 3
"""Matrices of b x block fp32 numbers at once: scores, gradients, and a product that is made of them."""
QUEUE_BLOCK = 4096
"""Features of the queue that are compared at once (`FeatureQueue`)."""


def loss_bytes(config: Config, rows: int, micro: int, ranks: int) -> int:
    """The most that a loss of `rows` samples of this rank holds; `micro` of them went through the model at once."""
    cached = rows > micro
    b, g, e, w = rows, rows * ranks, config.model.embed_dim, FP32 if cached else BYTES[config.train.precision]
    outputs = 2 * FP32 * b * e * 2 if cached else 0  # of all micro-batches, with their gradients
    exact = 2 * FP32 * b * e
    if config.loss.kind == "siglip":
        travelling = 2 * (w + FP32) * b * e if ranks > 1 else 0
        return outputs + exact + travelling + SCORES * FP32 * b * min(config.loss.block, b)
    scores = SCORES * FP32 * b * min(config.loss.block, g)
    if config.loss.kind == "clip":
        return outputs + exact + 2 * w * g * e + scores
    heads, text = config.loss.declip, config.model.text
    keys = (2 + 2 + 2) * w * g * e  # captions and neighbours of two views, and gradients of the captions
    nearest = 2 * FP32 * b * min(QUEUE_BLOCK, heads.queue)
    words = round(micro * heads.mask_rate * text.context_length) * text_tokenizer(text).vocab_size * (w + 2 * FP32)
    return 2 * outputs + 2 * exact + keys + max(scores, nearest) + words
