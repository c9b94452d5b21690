"""The small parts of a MetaNet.

Legend: x_bchw is a map, channels-last in memory; x_bnc is the same storage seen as tokens, n = h * w. Both views are
free. 1x1 convolutions are matrix products over the last axis of the channels-last storage.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh")}


def as_tokens(x_bchw: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] -> [b, h*w, c]; a view when the map is channels-last."""
    return x_bchw.permute(0, 2, 3, 1).flatten(1, 2)


def as_map(x_bnc: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """[b, h*w, c] -> channels-last [b, c, h, w]; a view."""
    return x_bnc.unflatten(1, size_hw).permute(0, 3, 1, 2)


def size_of(x_bchw: torch.Tensor) -> tuple[int, int]:
    """(height, width) of a map."""
    return x_bchw.shape[2], x_bchw.shape[3]


def make_divisible(width: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `width`, never more than 10 % below it (MobileNet's rule)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class Linear(nn.Linear):
    """A linear layer that starts as the transformer layers of the released networks do: N(0, 0.02) cut at 2, bias 0."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution computed as a matrix product. The weight keeps its released shape [out, in, 1, 1]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel_size=1, bias=bias)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return F.linear(x_bchw.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution with padding 1: a side of s pixels becomes ceil(s / stride)."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, groups=groups, bias=bias)


def depthwise3x3(width: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution of each channel by itself."""
    return conv3x3(width, width, stride, groups=width, bias=bias)


def max_pool3x3(stride: int) -> nn.MaxPool2d:
    """Maximum over 3x3 windows with padding 1: the same sizes as `conv3x3` gives."""
    return nn.MaxPool2d(kernel_size=3, stride=stride, padding=1)


class SqueezeExcitation(nn.Module):
    """Gate each channel by a function of all channels' means: x * hard_sigmoid(fc2(relu(fc1(mean(x)))))."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(width, squeezed)
        self.fc2 = Pointwise(squeezed, width)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        mean_bc11 = x_bchw.mean(dim=(2, 3), keepdim=True)
        return x_bchw * F.hardsigmoid(self.fc2(F.relu(self.fc1(mean_bc11))))


class Shortcut(nn.Module):
    """The residual path where width or resolution change: maximum over 3x3 windows, then a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, pool: bool = True) -> None:
        super().__init__()
        self.pool = max_pool3x3(stride) if pool else nn.Identity()
        self.project = Pointwise(inputs, outputs)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return self.project(self.pool(x_bchw))


class Mlp(nn.Module):
    """fc2(act(fc1(x))) on every token."""

    def __init__(self, width: int, hidden: int, act: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = ACTIVATIONS[act]()
        self.fc2 = Linear(hidden, width)

    def forward(self, x_bnc: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x_bnc)))


class LayerScale(nn.Module):
    """A learned factor per channel, small at the start (CaiT, arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.initial)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Drawn(NamedTuple):
    """What stochastic depth has drawn for a batch of b samples: either a factor for each, `factor_b`, or the rows whose
    branch is computed at all, `rows_k` (int64, each once), which then counts b / k times.
    """

    factor_b: torch.Tensor
    rows_k: torch.Tensor | None


class DropPath(nn.Module):
    """Stochastic depth: draws the samples that a residual branch is dropped for while training; the others are scaled
    so that the mean stays.

    Mode "mask" (released) draws for each sample and computes the branch for all. Mode "rows" computes it for the kept
    rows only, which saves the others' time and memory: a fixed number of them, the whole one nearest to (1 - rate) b
    and at least one, chosen evenly (as DINOv2 does, arXiv 2304.07193). Batch norms inside the branch then see the kept
    rows alone. Either way the same modules run on every rank, whatever is drawn.
    """

    def __init__(self, rate: float, mode: str = "mask") -> None:
        super().__init__()
        self.rate, self.mode = rate, mode

    def forward(self, x: torch.Tensor) -> Drawn | None:
        """For the samples of `x` [b, ...]; None where nothing is dropped."""
        if self.rate == 0.0 or not self.training:
            return None
        keep, b = 1.0 - self.rate, x.shape[0]
        if self.mode == "mask":
            return Drawn(x.new_empty(b).bernoulli_(keep) / keep, None)
        rows_k = torch.randperm(b, device=x.device)[: max(1, round(keep * b))]
        return Drawn(x.new_full((b,), b / len(rows_k)), rows_k)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}, mode={self.mode}"
