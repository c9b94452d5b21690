"""Normalisation of maps: batch normalisation whose statistics can be shared over ranks, and layer normalisation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _Running(threading.local):
    """Backward passes, and so recomputation, may run in a thread of their own. The flag is there from the beginning:
    torch.compile makes another version of a block where it has only just come into being."""

    def __init__(self) -> None:
        self.kept = False


_running = _Running()


@contextmanager
def statistics_kept() -> Iterator[None]:
    """Leave running statistics as they are inside: a block that is computed again must not count its batch twice."""
    before = _running.kept
    _running.kept = True
    try:
        yield
    finally:
        _running.kept = before


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a map [b, c, h, w], computed in fp32 (fp64 if the map is), with fp32 running statistics.

    `reduce_stats` takes one fp32 vector of 2c + 1 numbers (sums of the values, sums of their squares, both about the
    running mean, and their count on this rank) and returns its sum over the ranks that share statistics; it must be
    differentiable. None (the default) means that this process is alone, and torch's own kernel runs. The running mean
    is the same on those ranks, because it is made of the shared sums; sums about it keep their digits when the mean is
    large against the deviation.
    `frozen = True` normalises by the running statistics while training, too, and leaves them as they are.
    Names in the state dict are those of nn.BatchNorm2d.
    """

    num_batches_tracked: torch.Tensor

    def __init__(self, width: int, zero_init: bool = False) -> None:
        super().__init__(width)
        # A context that makes new tensors half-precision (sharded construction) must not reach the statistics.
        self.running_mean: torch.Tensor = self.running_mean.float()
        self.running_var: torch.Tensor = self.running_var.float()
        self.zero_init = zero_init
        self.frozen = False
        self.reduce_stats: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.reset_parameters()

    zero_init = False  # nn.BatchNorm2d.__init__ calls reset_parameters before ours has set it

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.weight)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> BatchNorm:
        statistics = {"running_mean": self.running_mean, "running_var": self.running_var}
        super()._apply(fn, recurse)
        for name, before in statistics.items():
            after = getattr(self, name)
            if after.dtype.itemsize < 4:  # half precision is not for the statistics; a change of device is
                setattr(self, name, before.to(after.device))
        return self

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        own_statistics = self.training and not self.frozen
        updated = own_statistics and not _running.kept
        if updated:
            self.num_batches_tracked.add_(1)
        weight_c, bias_c = _at_least_fp32(self.weight), _at_least_fp32(self.bias)
        if own_statistics and self.reduce_stats is not None:
            return self._shared(x_bchw, weight_c, bias_c, self.reduce_stats, updated)
        mean_c, var_c = self.running_mean, self.running_var
        if own_statistics and not updated:
            mean_c, var_c = mean_c.clone(), var_c.clone()  # the kernel writes into what it is given
        # torch's kernels take half-precision maps with fp32 weights and statistics, and sum in fp32
        return F.batch_norm(x_bchw, mean_c, var_c, weight_c, bias_c, own_statistics, self.momentum or 0.0, self.eps)

    def _shared(
        self,
        x_bchw: torch.Tensor,
        weight_c: torch.Tensor,
        bias_c: torch.Tensor,
        reduce_stats: Callable[[torch.Tensor], torch.Tensor],
        updated: bool,
    ) -> torch.Tensor:
        origin_c = self.running_mean.clone()
        x_bhwc = _at_least_fp32(x_bchw.permute(0, 2, 3, 1)) - origin_c
        count = x_bhwc.new_tensor([x_bhwc[..., 0].numel()])
        local = torch.cat([x_bhwc.sum(dim=(0, 1, 2)), x_bhwc.square().sum(dim=(0, 1, 2)), count])
        total = reduce_stats(local)
        sum_c, square_c, count = total.split([self.num_features, self.num_features, 1])
        mean_c = sum_c / count
        var_c = (square_c / count - mean_c.square()).clamp_min(0.0)
        if updated:
            with torch.no_grad():
                unbiased_c = var_c * (count / (count - 1).clamp_min(1.0))
                self.running_mean.lerp_(origin_c + mean_c, self.momentum or 0.0)
                self.running_var.lerp_(unbiased_c, self.momentum or 0.0)
        y_bhwc = (x_bhwc - mean_c) * (torch.rsqrt(var_c + self.eps) * weight_c) + bias_c
        return y_bhwc.to(x_bchw.dtype).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.num_features}, shared={self.reduce_stats is not None}, frozen={self.frozen}"


class MapLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every position of a map [b, c, h, w]."""

    def __init__(self, width: int, zero_init: bool = False) -> None:
        super().__init__(width)
        self.zero_init = zero_init
        self.reset_parameters()

    zero_init = False  # nn.LayerNorm.__init__ calls reset_parameters before ours has set it

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.weight)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return super().forward(x_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, Any] = {"batch": BatchNorm, "layer": MapLayerNorm}
