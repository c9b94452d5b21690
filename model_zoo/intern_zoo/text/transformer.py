"""Text tower: open_clip's `TextTransformer` (CLIP, arXiv 2103.00020), causal, read out at the end token."""

from __future__ import annotations

from open_clip.transformer import TextTransformer
from torch import nn

from intern_zoo.text.packed import PackedTextTransformer
from intern_zoo.text.tokenizer import EOT, VOCAB_SIZE

__all__ = ["TextTransformer", "create_text_transformer"]


def create_text_transformer(
    embed_dim: int,
    width: int = 512,
    layers: int = 12,
    heads: int = 8,
    context_length: int = 77,
    vocab_size: int = VOCAB_SIZE,
    eos_id: int = EOT,
    pack: bool = False,
) -> TextTransformer:
    """Token ids [b, context_length] to features [b, embed_dim] (not normalised).

    The feature is read at the first `eos_id`; with the causal mask, what stands behind it changes nothing. (CLIP's code
    reads it at the largest id, which is the same token as long as no vocabulary has larger ones, such as a mask's.)
    With `pack` it is not computed either: see `packed.py`.

    Raises:
        ValueError: `heads` does not divide `width`.
    """
    if width % heads:
        raise ValueError(f"text width {width} is not a multiple of {heads} heads")
    tower = PackedTextTransformer if pack else TextTransformer
    return tower(
        context_length=context_length,
        vocab_size=vocab_size,
        width=width,
        heads=heads,
        layers=layers,
        output_dim=embed_dim,
        act_layer=nn.GELU,
        pool_type="eos",
        eos_id=eos_id,
    )
