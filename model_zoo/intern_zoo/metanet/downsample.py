"""UniNet's down-sampling modules, in front of a stage: convolution only (L-DSM), or with attention too (LG-DSM).

Legend: x_bchw map in, q_bnc queries at the new resolution, m tokens of the old resolution. Source: UniNet,
arXiv 2207.05420, and its authors' code (the paper's G-DSM is in no released code).
"""

from __future__ import annotations

import torch
from torch import nn

from intern_zoo.metanet.attention import softmax_attention
from intern_zoo.metanet.layers import Linear, Pointwise, Shortcut, as_map, as_tokens, depthwise3x3, size_of
from intern_zoo.metanet.norm import NORMS


class LocalDownsample(nn.Module):
    """L-DSM: depthwise 3x3 with stride, norm, 1x1 to the new width; plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.shortcut = Shortcut(inputs, outputs, stride, pool=stride != 1)
        self.depthwise = depthwise3x3(inputs, stride, bias=True)
        self.norm = NORMS[norm](inputs)
        self.project = Pointwise(inputs, outputs)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return self.project(self.norm(self.depthwise(x_bchw))) + self.shortcut(x_bchw)


class LocalGlobalDownsample(nn.Module):
    """LG-DSM: the convolutional path gives the queries at the new resolution, all old tokens give keys and values."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.shortcut = Shortcut(inputs, outputs, stride, pool=stride != 1)
        self.depthwise = depthwise3x3(inputs, stride, bias=True)
        self.norm = NORMS[norm](inputs)
        self.query = Pointwise(inputs, outputs)
        self.norm_query = nn.LayerNorm(outputs)
        self.norm_key_value = nn.LayerNorm(inputs)
        self.key_value = Linear(inputs, 2 * outputs)
        self.proj = Linear(outputs, outputs)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        r_bchw = self.shortcut(x_bchw)
        q_bnc = self.norm_query(as_tokens(self.query(self.norm(self.depthwise(x_bchw)))))
        kv_bmc = self.key_value(self.norm_key_value(as_tokens(x_bchw)))
        k_bmhd, v_bmhd = kv_bmc.unflatten(-1, (2, -1, self.head_dim)).unbind(2)
        t_bnc = self.proj(softmax_attention(q_bnc.unflatten(-1, (-1, self.head_dim)), k_bmhd, v_bmhd).flatten(2))
        return r_bchw + as_map(t_bnc, size_of(r_bchw))
