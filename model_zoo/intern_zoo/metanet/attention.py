"""The two attentions of MetaNet, over tokens [b, n, c]: between positions (softmax) and between channels (XCA).

Legend: b batch, n tokens, c channels in, o channels out, h heads, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from intern_kernels.cross_covariance_attention import cross_covariance_attention
from torch import nn

from intern_zoo.metanet.layers import Linear


def softmax_attention(q_bnhd: torch.Tensor, k_bmhd: torch.Tensor, v_bmhd: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(d)) v for every head: [b, n, h, d]."""
    out_bhnd = F.scaled_dot_product_attention(q_bnhd.transpose(1, 2), k_bmhd.transpose(1, 2), v_bmhd.transpose(1, 2))
    return out_bhnd.transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention between positions; `outputs` may differ from `inputs`."""

    def __init__(self, inputs: int, outputs: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = Linear(inputs, 3 * inputs)
        self.proj = Linear(inputs, outputs)

    def forward(self, x_bnc: torch.Tensor) -> torch.Tensor:
        q_bnhd, k_bnhd, v_bnhd = self.qkv(x_bnc).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        return self.proj(softmax_attention(q_bnhd, k_bnhd, v_bnhd).flatten(2))


class CrossCovarianceAttention(nn.Module):
    """Multi-head attention between channels, with a learned temperature per head: linear cost in tokens."""

    def __init__(self, inputs: int, outputs: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.temperature = nn.Parameter(torch.empty(inputs // head_dim, 1, 1))
        self.qkv = Linear(inputs, 3 * inputs)
        self.proj = Linear(inputs, outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.temperature)

    def forward(self, x_bnc: torch.Tensor) -> torch.Tensor:
        q_bnhd, k_bnhd, v_bnhd = self.qkv(x_bnc).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        return self.proj(cross_covariance_attention(q_bnhd, k_bnhd, v_bnhd, self.temperature).flatten(2))
