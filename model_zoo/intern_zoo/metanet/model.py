"""MetaNet: a stem, stages of blocks, a 1x1 head, and the verbs that timm's models answer.

Legend: x_bchw maps (channels-last in memory), f_bf pooled features, f = `num_features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from intern_zoo.metanet.blocks import BlockShape, make_block
from intern_zoo.metanet.config import MetaNetConfig
from intern_zoo.metanet.downsample import LocalDownsample, LocalGlobalDownsample
from intern_zoo.metanet.layers import ACTIVATIONS, Linear, Pointwise, conv3x3
from intern_zoo.metanet.norm import NORMS, BatchNorm
from intern_zoo.metanet.recompute import set_recompute
from intern_zoo.weight_decay import offsets_and_factors


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, activation: the stem (3x3, stride 2) and the head (1x1)."""

    def __init__(self, conv: nn.Conv2d, norm: str, act: str) -> None:
        super().__init__()
        self.conv = conv
        self.norm = NORMS[norm](conv.out_channels)
        self.act = ACTIVATIONS[act]()

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x_bchw)))


class Stage(nn.Module):
    """A down-sampling module (or none) and blocks of one kind."""

    def __init__(self, config: MetaNetConfig, index: int) -> None:
        super().__init__()
        before = config.stem_width if index == 0 else config.widths[index - 1]
        width, stride = config.widths[index], config.strides[index]
        inputs, in_block = config.block_inputs()[index], config.downsamples[index] == "block"
        self.downsample: nn.Module
        if in_block:
            self.downsample = nn.Identity()
        elif config.downsamples[index] == "local":
            self.downsample = LocalDownsample(before, width, stride, config.norm)
        else:
            self.downsample = LocalGlobalDownsample(before, width, stride, config.norm, config.head_dim)
        self.blocks = nn.ModuleList()
        for i, drop_path in enumerate(config.drop_path_rates()[index]):
            shape = BlockShape(
                kind=config.blocks[index],
                inputs=inputs if i == 0 else width,
                outputs=width,
                stride=stride if i == 0 and in_block else 1,
                expansion=config.expansions[index],
                drop_path=drop_path,
                drop_path_mode=config.drop_path_mode,
                head_dim=config.head_dim,
                act=config.act,
                norm=config.norm,
                squeeze_of=config.squeeze_of,
                layer_scale=config.layer_scale,
            )
            self.blocks.append(make_block(shape))

    def units(self) -> list[nn.Module]:
        """The down-sampling module, where there is one, and the blocks."""
        return [*([] if isinstance(self.downsample, nn.Identity) else [self.downsample]), *self.blocks]

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        x_bchw = self.downsample(x_bchw)
        for block in self.blocks:
            x_bchw = block(x_bchw)
        return x_bchw


class MetaNet(nn.Module):
    """The network that a MetaNetConfig describes; any input size and aspect ratio.

    `forward(x [b, in_chans, H, W])` gives class scores [b, num_classes], or pooled features [b, num_features] when
    `num_classes` is 0. `num_features` is the width of the head, also that of the pooled features.
    """

    def __init__(self, config: MetaNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = self.head_hidden_size = config.head_width
        self.global_pool = config.global_pool
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": config.widths[i], "reduction": config.reductions[i], "module": f"stages.{i}"}
            for i in config.out_stages
        ]
        self.stem = ConvNormAct(conv3x3(config.in_chans, config.stem_width, stride=2), config.norm, config.act)
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.widths)))
        self.head: nn.Module = ConvNormAct(
            Pointwise(config.widths[-1], config.head_width, bias=False), config.norm, config.act
        )
        self.dropout = nn.Dropout(config.drop_rate)
        self.classifier = self._make_classifier(config.num_classes)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x_bchw))

    def forward_features(self, x_bchw: torch.Tensor) -> torch.Tensor:
        """The head's map [b, num_features, ceil(H / 32), ceil(W / 32)], before pooling."""
        x_bchw = self.stem(x_bchw.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            x_bchw = stage(x_bchw)
        return self.head(x_bchw)

    def forward_head(self, x_bchw: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool `forward_features`' map to [b, num_features]; then, without `pre_logits`, classify it."""
        f_bf = x_bchw.mean(dim=(2, 3)) if self.global_pool else x_bchw
        f_bf = self.dropout(f_bf)
        return f_bf if pre_logits else self.classifier(f_bf)

    def forward_intermediates(
        self,
        x_bchw: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Maps at strides 4, 8, 16 and 32 (`feature_info`), and the head's map unless `intermediates_only`.

        `indices`: the levels wanted, the last n if an int, all if None. `norm` is for other models (nothing follows a
        stage here). `stop_early` with `intermediates_only` skips the stages after the last level wanted.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}. MetaNet's maps are NCHW. Leave it out.")
        wanted = {self.config.out_stages[i]: None for i in self._levels(indices)}
        last = max(wanted) + 1 if stop_early and intermediates_only else len(self.stages)
        x_bchw = self.stem(x_bchw.contiguous(memory_format=torch.channels_last))
        intermediates = []
        for i, stage in enumerate(self.stages[:last]):
            x_bchw = stage(x_bchw)
            if i in wanted:
                intermediates.append(x_bchw)
        return intermediates if intermediates_only else (self.head(x_bchw), intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the levels `indices` do not need (stages after the last one, head); returns them as 0, 1, ..."""
        levels = self._levels(indices)
        self.stages = self.stages[: self.config.out_stages[max(levels)] + 1]
        if prune_head or len(self.stages) < len(self.config.widths):
            self.head = nn.Identity()
            self.num_features = self.head_hidden_size = self.config.widths[len(self.stages) - 1]
            self.reset_classifier(0)
        return levels

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` (0: none); `global_pool` "avg", or "" to leave maps unpooled."""
        if global_pool is not None:
            self.global_pool = global_pool  # type: ignore[assignment]
        self.num_classes = num_classes
        self.classifier = self._make_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def units(self) -> list[nn.Module]:
        """The down-sampling modules and blocks in the order in which they run: what recompute and pipelines cut at."""
        return [unit for stage in self.stages for unit in cast(Stage, stage).units()]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass; wraps the blocks from outside."""
        self.grad_checkpointing = enable
        for unit in self.units():
            set_recompute(unit, enable)

    def freeze_statistics(self, frozen: bool = True) -> None:
        """Normalise by running statistics in training too, and leave them as they are (or undo that)."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.frozen = frozen

    def no_weight_decay(self) -> set[str]:
        """Parameters that are factors or offsets: norms, biases, layer scales, XCA's temperature."""
        return offsets_and_factors(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters from the input to the output (layer-wise learning rates)."""
        blocks: Any = (
            r"^stages\.(\d+)"
            if coarse
            else [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^head", (99999,))]
        )
        return {"stem": r"^stem", "blocks": blocks}

    def init_weights(self) -> None:
        """Draw all weights anew, in place: after construction on meta and `to_empty`."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def _make_classifier(self, num_classes: int) -> nn.Module:
        return Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def _levels(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.config.out_stages)
        if indices is None:
            return list(range(count))
        chosen = list(range(count - indices, count)) if isinstance(indices, int) else list(indices)
        for level in chosen:
            if not -count <= level < count:
                raise ValueError(f"Feature level {level}. There are {count}, 0 to {count - 1}. Choose among these.")
        return [level % count for level in chosen]
