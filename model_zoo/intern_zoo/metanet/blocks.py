"""The block kinds of MetaNet and UniNet. Every block maps a channels-last map [b, c, h, w] to another one.

Legend: h_bchw hidden maps of expanded width, r_bchw the residual path, t_bnc tokens (the same storage, n = h * w),
n_bnc normalised ones.
Sources: the released MetaNet of OpenGVLab's GV-B and UniNet (arXiv 2207.05420); names are ours, `state_dict.py` has
theirs. UniNet's DWConvBlock is `MBConv`, its AttentionBlock and GV-B's SABlock are `AttentionBlock` with
self-attention, GV-B's Block is `AttentionBlock` with XCA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from intern_zoo.metanet.attention import CrossCovarianceAttention, SelfAttention
from intern_zoo.metanet.layers import (
    ACTIVATIONS,
    DropPath,
    LayerScale,
    Mlp,
    Pointwise,
    Shortcut,
    SqueezeExcitation,
    as_map,
    as_tokens,
    conv3x3,
    depthwise3x3,
    make_divisible,
    max_pool3x3,
    size_of,
)
from intern_zoo.metanet.norm import NORMS
from intern_zoo.metanet.steps import add_branch, add_branch_norm, position_norm

ATTENTIONS: dict[str, type[nn.Module]] = {"attention": SelfAttention, "xca": CrossCovarianceAttention}


@dataclass(frozen=True)
class BlockShape:
    """What one block is: widths in and out, stride, expansion of the hidden width, and the family's choices."""

    kind: str
    inputs: int
    outputs: int
    stride: int
    expansion: float
    drop_path: float
    drop_path_mode: str
    head_dim: int
    act: str
    norm: str
    squeeze_of: str
    layer_scale: float

    @property
    def hidden(self) -> int:
        return int(self.inputs * self.expansion)

    @property
    def squeezed(self) -> int:
        """Width inside the squeeze-excitation: a quarter of the hidden width (released) or of the input width."""
        return make_divisible((self.hidden if self.squeeze_of == "hidden" else self.inputs) // 4)

    @property
    def keeps_shape(self) -> bool:
        return self.inputs == self.outputs and self.stride == 1


def shortcut_of(shape: BlockShape) -> nn.Module:
    """The residual path of a block: nothing where the shape stays, else pool and 1x1 convolution."""
    return nn.Identity() if shape.keeps_shape else Shortcut(shape.inputs, shape.outputs, shape.stride)


class MBConv(nn.Module):
    """Inverted residual: norm, expand 1x1, depthwise 3x3, squeeze-excitation, project 1x1.

    Without expansion (hidden width = input width, stride 1) it begins at the depthwise convolution.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        norm, act = NORMS[shape.norm], ACTIVATIONS[shape.act]
        self.expands = shape.inputs != shape.hidden or shape.stride != 1
        self.shortcut = shortcut_of(shape)
        if self.expands:
            self.norm_in = norm(shape.inputs)
            self.expand = Pointwise(shape.inputs, shape.hidden, bias=False)
            self.norm_expand = norm(shape.hidden)
        self.depthwise = depthwise3x3(shape.hidden, shape.stride)
        self.norm_depthwise = norm(shape.hidden)
        self.squeeze = SqueezeExcitation(shape.hidden, shape.squeezed)
        self.project = Pointwise(shape.hidden, shape.outputs)
        self.norm_out = norm(shape.outputs, zero_init=True)
        self.act = act()
        self.drop_path = DropPath(shape.drop_path, shape.drop_path_mode)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return add_branch(self.shortcut(x_bchw), x_bchw, self.branch, self.norm_out, self.drop_path(x_bchw))

    def branch(self, x_bchw: torch.Tensor) -> torch.Tensor:
        h_bchw = self.act(self.norm_expand(self.expand(self.norm_in(x_bchw)))) if self.expands else x_bchw
        h_bchw = self.act(self.norm_depthwise(self.depthwise(h_bchw)))
        return self.project(self.squeeze(h_bchw))


class FusedMBConv(nn.Module):
    """Inverted residual with one full 3x3 convolution in place of expand and depthwise.

    Without expansion (hidden width = input width) the 3x3 convolution is the projection, after the squeeze-excitation.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        norm, act = NORMS[shape.norm], ACTIVATIONS[shape.act]
        self.expands = shape.inputs != shape.hidden
        self.shortcut = shortcut_of(shape)
        if self.expands:
            self.norm_in = norm(shape.inputs)
            self.expand = conv3x3(shape.inputs, shape.hidden, shape.stride)
            self.norm_expand = norm(shape.hidden)
            self.act = act()
        self.squeeze = SqueezeExcitation(shape.hidden, shape.squeezed)
        self.project = (
            Pointwise(shape.hidden, shape.outputs)
            if self.expands
            else conv3x3(shape.hidden, shape.outputs, shape.stride, bias=True)
        )
        self.norm_out = norm(shape.outputs, zero_init=True)
        self.drop_path = DropPath(shape.drop_path, shape.drop_path_mode)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return add_branch(self.shortcut(x_bchw), x_bchw, self.branch, self.norm_out, self.drop_path(x_bchw))

    def branch(self, x_bchw: torch.Tensor) -> torch.Tensor:
        h_bchw = self.act(self.norm_expand(self.expand(self.norm_in(x_bchw)))) if self.expands else x_bchw
        return self.project(self.squeeze(h_bchw))


class AttentionBlock(nn.Module):
    """Positions by a depthwise convolution, then attention and MLP, each a residual with layer scale.

    Self-attention or XCA, by `shape.kind`.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width = shape.inputs
        self.position = depthwise3x3(width, bias=True)
        self.norm1 = nn.LayerNorm(width)
        self.attention = ATTENTIONS[shape.kind](width, width, shape.head_dim)
        self.scale1 = LayerScale(width, shape.layer_scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, shape.hidden, shape.act)
        self.scale2 = LayerScale(width, shape.layer_scale)
        self.drop_path = DropPath(shape.drop_path, shape.drop_path_mode)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        x_bchw, n_bnc = position_norm(x_bchw, self.position, self.norm1)
        t_bnc, drop = as_tokens(x_bchw), self.drop_path
        t_bnc, n_bnc = add_branch_norm(t_bnc, n_bnc, self.attention, self.scale1, drop(t_bnc), self.norm2)
        t_bnc = add_branch(t_bnc, n_bnc, self.mlp, self.scale2, drop(t_bnc))
        return as_map(t_bnc, size_of(x_bchw))


class AttentionTransition(nn.Module):
    """The first block of an attention stage of the released MetaNet, where width or resolution change.

    Pool the normalised map, attend with a projection to the new width, add to the pooled and projected residual.
    It has neither MLP nor drop path.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.position = depthwise3x3(shape.inputs, bias=True)
        self.shortcut = shortcut_of(shape)
        self.norm1 = nn.LayerNorm(shape.inputs)
        self.pool = max_pool3x3(shape.stride)
        self.attention = ATTENTIONS[shape.kind](shape.inputs, shape.outputs, shape.head_dim)
        self.scale1 = LayerScale(shape.outputs, shape.layer_scale)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        x_bchw, n_bnc = position_norm(x_bchw, self.position, self.norm1)
        r_bchw = self.shortcut(x_bchw)
        y_bchw = self.pool(as_map(n_bnc, size_of(x_bchw)))
        t_bnc = self.scale1(self.attention(as_tokens(y_bchw)))
        return r_bchw + as_map(t_bnc, size_of(y_bchw))


def make_block(shape: BlockShape) -> nn.Module:
    """The block that `shape` describes."""
    if shape.kind == "mbconv":
        return MBConv(shape)
    if shape.kind == "fused_mbconv":
        return FusedMBConv(shape)
    return AttentionBlock(shape) if shape.keeps_shape else AttentionTransition(shape)
