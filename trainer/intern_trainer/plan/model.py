"""What a plan knows of a model: the sizes of its weights, found on the meta device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from intern_zoo.metanet.norm import BatchNorm
from torch import nn

from intern_trainer.config.schema import Config
from intern_trainer.optim import parameter_groups


@dataclass(frozen=True)
class Weights:
    """Sizes, in elements.

    Attributes:
        groups: trained parameters, tensor by tensor, in the optimizer's groups and order.
        frozen: tensors that are not trained.
        largest_module: most parameters that one module holds itself, what ZeRO-3 gathers at least.
        norm_widths: channels of each batch norm.
        buffer_bytes: of the model's buffers (statistics, queues, masks).
    """

    groups: tuple[tuple[int, ...], ...]
    frozen: tuple[int, ...]
    largest_module: int
    norm_widths: tuple[int, ...]
    buffer_bytes: int

    @property
    def trained(self) -> int:
        return sum(map(sum, self.groups))

    @property
    def total(self) -> int:
        return self.trained + sum(self.frozen)

    @property
    def tensors(self) -> list[int]:
        """All parameters, tensor by tensor."""
        return [size for group in (*self.groups, self.frozen) for size in group]


def weigh(model: nn.Module, config: Config, part: Sequence[nn.Module] | None = None) -> Weights:
    """Of a model on any device, incl. meta; shared parameters count once.

    Args:
        part: modules that hold some of the model's parameters, which alone are weighed.
    """
    held = model if part is None else nn.ModuleList(part)
    kept = {id(parameter) for parameter in held.parameters()}
    groups = [[p.numel() for p in group["params"] if id(p) in kept] for group in parameter_groups(model, config)]
    own = [sum(p.numel() for p in module.parameters(recurse=False)) for module in held.modules()]
    return Weights(
        groups=tuple(tuple(group) for group in groups if group),
        frozen=tuple(p.numel() for p in held.parameters() if not p.requires_grad),
        largest_module=max(own),
        norm_widths=tuple(m.num_features for m in held.modules() if isinstance(m, BatchNorm)),
        buffer_bytes=sum(math.prod(b.shape) * b.element_size() for b in held.buffers()),
    )
