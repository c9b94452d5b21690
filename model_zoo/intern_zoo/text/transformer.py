"""Text tower: open_clip's `TextTransformer` (CLIP, arXiv 2103.00020), causal, read out at the end token."""

from __future__ import annotations

from open_clip.transformer import TextTransformer
from torch import nn

from intern_zoo.text.tokenizer import VOCAB_SIZE

__all__ = ["TextTransformer", "create_text_transformer"]


def create_text_transformer(
    embed_dim: int, width: int = 512, layers: int = 12, heads: int = 8, context_length: int = 77
) -> TextTransformer:
    """Token ids [b, context_length] to features [b, embed_dim] (not normalised).

    The end token has the largest id, so the feature is read at `argmax` of the ids; with the causal mask, what stands
    behind it changes nothing.

    Raises:
        ValueError: `heads` does not divide `width`.
    """
    if width % heads:
        raise ValueError(f"text width {width} is not a multiple of {heads} heads")
    return TextTransformer(
        context_length=context_length,
        vocab_size=VOCAB_SIZE,
        width=width,
        heads=heads,
        layers=layers,
        output_dim=embed_dim,
        act_layer=nn.GELU,
    )
