"""Which parameters are offsets or factors, so that weight decay would only pull them from where they belong."""

from __future__ import annotations

from torch import nn

FACTORS = ("gamma", "temperature", "logit_scale")
"""Last part of the name of a parameter that multiplies: layer scales, XCA's temperature, a two-tower model's scale."""


def offsets_and_factors(model: nn.Module) -> set[str]:
    """Full names of biases, of norms' parameters, and of `FACTORS`.

    Judged by name and by the class of the module, not by shape: a parameter that has been sharded over ranks no longer
    has the shape that it was made with.
    """
    names = set()
    for prefix, module in model.named_modules():
        is_norm = "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False):
            if is_norm or name.endswith("bias") or name in FACTORS:
                names.add(f"{prefix}.{name}" if prefix else name)
    return names
