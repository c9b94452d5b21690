"""The text tower without the work on what stands behind the end tokens: all captions of a batch packed in one row.

Captions are short (a dozen tokens of 77, say), and with a causal mask nothing behind the end token reaches the
feature. So the t tokens of all captions that count are computed as one row [t, c], with positions that start anew with
each caption; only attention, which costs a few hundredths of the layers' work, sees captions apart. The features are
the same to rounding.

b batch, l tokens, t tokens of all captions up to their ends, c width, h heads, d channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

Slots = tuple[Tensor, int, int]
"""Where the t tokens stand in [b * l], int64 [t]; b; l, the length of the longest caption."""


class PackedTextTransformer(TextTransformer):
    """open_clip's, with the same parameters under the same names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.transformer.resblocks = nn.ModuleList(PackedBlock(block) for block in self.transformer.resblocks)

    def forward(self, text: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Token ids [b, l] to features [b, e]; with `output_tokens` also the tokens' [b, l, c], zero behind the end."""
        slots, last_b = _slots(text, self.eos_id)
        slot_t, _, longest = slots
        ids_t = text[:, :longest].flatten()[slot_t]
        x_tc = self.token_embedding(ids_t).to(self.transformer.get_cast_dtype())
        x_tc = x_tc + self.positional_embedding[slot_t % longest].to(x_tc.dtype)
        x_tc = self.ln_final(self.transformer(x_tc, attn_mask=slots))
        pooled_be = x_tc[last_b] @ self.text_projection
        if not self.output_tokens:
            return pooled_be
        tokens_blc = _spread(x_tc, slots)
        return pooled_be, F.pad(tokens_blc, (0, 0, 0, text.shape[1] - longest))


class PackedBlock(nn.Module):
    """open_clip's block, of which it takes over the parameters, on tokens [t, c]."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn = block.ln_1, PackedAttention(block.attn)
        self.ln_2, self.mlp = block.ln_2, block.mlp

    def get_weight_dtype(self) -> torch.dtype:
        return self.mlp.c_fc.weight.dtype

    def forward(self, x_tc: Tensor, k_x: None = None, v_x: None = None, attn_mask: Slots | None = None) -> Tensor:
        """The signature is that of open_clip's block, whose loop and recomputation call it."""
        assert attn_mask is not None, "a packed row needs to know its captions"
        x_tc = x_tc + self.attn(self.ln_1(x_tc), attn_mask)
        return x_tc + self.mlp(self.ln_2(x_tc))


class PackedAttention(nn.Module):
    """Causal self-attention within each caption of a packed row; the projections see the row as it is."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(self, x_tc: Tensor, slots: Slots) -> Tensor:
        qkv_blx = _spread(F.linear(x_tc, self.in_proj_weight, self.in_proj_bias), slots)
        q_bhld, k_bhld, v_bhld = qkv_blx.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y_bhld = F.scaled_dot_product_attention(q_bhld, k_bhld, v_bhld, is_causal=True)
        return self.out_proj(y_bhld.transpose(1, 2).flatten(2).flatten(0, 1)[slots[0]])


def _slots(text: Tensor, eos_id: int) -> tuple[Slots, Tensor]:
    """Which tokens count, and where in the row each caption's last one stands [b]. Waits once for the device.

    On meta, where ids have no values, every caption is as long as it can be.
    """
    batch, length = text.shape
    if text.is_meta:
        last_b = torch.arange(1, batch + 1, device=text.device) * length - 1
        return (torch.arange(batch * length, device=text.device), batch, length), last_b
    length_b = (text == eos_id).int().argmax(dim=-1) + 1
    longest = int(length_b.max())
    counts_bl = torch.arange(longest, device=text.device) < length_b[:, None]
    return (counts_bl.flatten().nonzero().squeeze(1), batch, longest), length_b.cumsum(0) - 1


def _spread(x_tx: Tensor, slots: Slots) -> Tensor:
    """[t, x] to [b, l, x], zeros where no token counts."""
    slot_t, batch, longest = slots
    padded = x_tx.new_zeros(batch * longest, x_tx.shape[1]).index_copy(0, slot_t, x_tx)
    return padded.unflatten(0, (batch, longest))
