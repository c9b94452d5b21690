"""The text tower in plain torch, for machines without open_clip: same parameter names, same outputs.

Only exported folders use it; the zoo itself builds open_clip's `TextTransformer`, and a test holds the two together.

b batch, l tokens, c width, h heads, d channels of a head, e width of the common space.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSelfAttention(nn.Module):
    """`nn.MultiheadAttention` reduced to what CLIP's text tower does with it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def forward(self, x_blc: Tensor) -> Tensor:
        qkv_bl3hd = F.linear(x_blc, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        q_bhld, k_bhld, v_bhld = qkv_bl3hd.permute(2, 0, 3, 1, 4)
        y_bhld = F.scaled_dot_product_attention(q_bhld, k_bhld, v_bhld, is_causal=True)
        return self.out_proj(y_bhld.transpose(1, 2).flatten(2))


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x_blc: Tensor) -> Tensor:
        x_blc = x_blc + self.attn(self.ln_1(x_blc))
        return x_blc + self.mlp(self.ln_2(x_blc))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))

    def forward(self, x_blc: Tensor) -> Tensor:
        for block in self.resblocks:
            x_blc = block(x_blc)
        return x_blc


class TextTransformer(nn.Module):
    """Token ids [b, l] to features [b, e], read at the first end token, `eos_id`.

    l may be anything up to `context_length`: attention is causal, so what stands behind the end token changes nothing.
    """

    def __init__(
        self, vocab_size: int, eos_id: int, context_length: int, width: int, layers: int, heads: int, output_dim: int
    ) -> None:
        super().__init__()
        self.eos_id = eos_id
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Transformer(width, layers, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, output_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"A text has {length} tokens and the model takes {self.context_length}: "
                "tokenize with truncation=True, or in a pipeline, which never cuts, shorten the text."
            )
        x_blc = self.token_embedding(text) + self.positional_embedding[:length]
        x_blc = self.ln_final(self.transformer(x_blc))
        end_b = (text == self.eos_id).int().argmax(dim=-1)
        x_bc = x_blc[torch.arange(len(text), device=text.device), end_b]
        return x_bc @ self.text_projection
