"""FLOPs of a task's model, counted on meta tensors: no memory, no data, whatever the model's size or sharding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from intern_trainer.config.phases import Phases
from intern_trainer.config.schema import Config


def forward_flops(build_model: Callable[[], nn.Module], inputs: Mapping[str, Tensor]) -> int:
    """FLOPs of one forward pass (a multiply-add counts 2), of convolutions, matrix products and attention.

    Args:
        build_model: makes the model; called with meta as the default device.
        inputs: keyword arguments of its forward, for one sample; only their shapes and types count.
    """
    with torch.device("meta"):
        model = build_model().eval()  # batch norm in training refuses one sample of one pixel
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**{name: tensor.to("meta") for name, tensor in inputs.items()})
    return int(counter.get_total_flops())


def count_flops(config: Config, task: Any) -> dict[int, int]:
    """Forward FLOPs of all views of one sample in the towers of the task's model, by the side of the picture: those of
    the phases.
    """
    text = torch.zeros(1, config.model.text.context_length, dtype=torch.long)
    texts = task.views.captions * forward_flops(task.build_model, {"text": text})
    sides = {span.image_size for span in Phases(config).spans}
    return {
        side: texts + task.views.images * forward_flops(task.build_model, {"image": torch.zeros(1, 3, side, side)})
        for side in sides
    }
