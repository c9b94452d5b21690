"""How many floating point operations a model's forward pass takes."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(model: nn.Module, input_size: int | tuple[int, int]) -> int:
    """FLOPs of one image's forward pass (a multiply-add counts two), of convolutions, products and attention.

    `input_size`: the side in pixels, or (height, width). Counted by torch on meta tensors of the model's shapes, so it
    takes no memory and works for a model of any size on any device, incl. meta. The model itself is left as it is.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    channels = getattr(getattr(model, "config", None), "in_chans", 3)
    image = torch.empty(1, channels, height, width, device="meta", dtype=dtype)
    training = [module for module in model.modules() if module.training]
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        with torch.no_grad(), counter:
            torch.func.functional_call(model, on_meta, (image,))
    finally:
        for module in training:
            module.training = True
    return int(counter.get_total_flops())
