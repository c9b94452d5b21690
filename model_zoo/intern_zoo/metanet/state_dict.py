"""Weights under the names that the released code gives them, in and out.

GV-B's `MetaNet` and UniNet's `VisionTransformer` number their blocks (and down-sampling modules) through all stages and
their layers inside `nn.Sequential`s; ours have stages and words. The tensors themselves are the same, shape for shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from intern_zoo.errors import StateDictError
from intern_zoo.metanet.blocks import AttentionBlock, AttentionTransition, FusedMBConv, MBConv
from intern_zoo.metanet.downsample import LocalDownsample, LocalGlobalDownsample
from intern_zoo.metanet.layers import Shortcut
from intern_zoo.metanet.model import MetaNet

PREFIXES = ("module.", "backbone.")
"""What wrappers put in front of every name: DistributedDataParallel, and OpenMMLab's detectors and segmentors."""

_EXPANDED = {"norm_in": "b1.0", "expand": "b1.1", "norm_expand": "b1.2"}
_ATTENTION = {"position": "pos_embed", "norm1": "norm1", "attention": "attn", "scale1.gamma": "gamma_1"}
RELEASED: dict[type[nn.Module], dict[str, str]] = {
    MBConv: {
        **_EXPANDED,
        "depthwise": "b2.0",
        "norm_depthwise": "b2.1",
        "squeeze": "b2.3",
        "project": "b2.4",
        "norm_out": "b2.5",
    },
    FusedMBConv: {**_EXPANDED, "squeeze": "b2.0", "project": "b2.1", "norm_out": "b2.2"},
    AttentionBlock: {**_ATTENTION, "norm2": "norm2", "mlp": "mlp", "scale2.gamma": "gamma_2"},
    AttentionTransition: _ATTENTION,
    LocalDownsample: {"depthwise": "downsample.0", "norm": "downsample.1", "project": "downsample.2"},
    LocalGlobalDownsample: {
        "depthwise": "q.0",
        "norm": "q.1",
        "query": "q.2",
        "norm_query": "q_norm",
        "norm_key_value": "kv_norm",
        "key_value": "kv",
        "proj": "proj",
    },
}
"""Block class -> {our name inside the block: the released one}; the shortcut follows a rule of its own."""
_OUTSIDE = {"stem.conv": "stem.0", "stem.norm": "stem.1", "head.conv": "head.0", "head.norm": "head.1"}


def released_names(model: MetaNet) -> dict[str, str]:
    """Our name -> released name, for every tensor in `model.state_dict()`."""
    prefixes = {**_OUTSIDE, "classifier": "classifier"}
    names = {module: name for name, module in model.named_modules()}
    for index, unit in enumerate(model.units()):
        inside = dict(RELEASED[type(unit)])
        shortcut = getattr(unit, "shortcut", None)
        if isinstance(shortcut, Shortcut):
            pooled = not isinstance(shortcut.pool, nn.Identity)
            inside["shortcut.project"] = "residual.1" if pooled else "residual.0"
        prefixes |= {f"{names[unit]}.{ours}": f"blocks.{index}.{theirs}" for ours, theirs in inside.items()}
    return {name: _with_released_prefix(name, prefixes) for name in model.state_dict()}


def _with_released_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    head, tail = name, ""
    while head not in prefixes:
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return prefixes[head] + tail


def to_released(model: MetaNet, weights: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The state dict of `model` (or `weights`, under our names) under the released names."""
    names = released_names(model)
    return {names[name]: tensor for name, tensor in (weights or model.state_dict()).items()}


def from_released(model: MetaNet, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights` under released names, as a state dict for `model`.

    Prefixes `module.` and `backbone.` are taken off. A classifier in `weights` is left out where `model` has none
    (`num_classes=0`), because UniNet's files always hold one.
    Raises StateDictError that names every key that is missing, left over, or of another shape.
    """
    found = {_without_prefixes(name): tensor for name, tensor in weights.items()}
    if model.num_classes == 0:
        found = {name: tensor for name, tensor in found.items() if not name.startswith("classifier.")}
    ours = {released: name for name, released in released_names(model).items()}
    own = model.state_dict()
    problems = [f"missing: {name} {list(own[ours[name]].shape)}" for name in ours if name not in found]
    problems += [f"left over: {name} {list(tensor.shape)}" for name, tensor in found.items() if name not in ours]
    problems += [
        f"misshaped: {name} is {list(tensor.shape)}, the model's is {list(own[ours[name]].shape)}"
        for name, tensor in found.items()
        if name in ours and tensor.shape != own[ours[name]].shape
    ]
    if problems:
        raise StateDictError(
            f"{len(problems)} keys do not fit:\n  " + "\n  ".join(problems) + "\n",
            f"The weights must be those of this network ({len(ours)} tensors, {len(weights)} given).",
            "Create the variant, with the num_classes, that the file was made for (GV-B's files: num_classes=0; "
            "reset_classifier afterwards).",
        )
    return {ours[name]: tensor for name, tensor in found.items()}


def load_released(model: MetaNet, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy `weights` under released names into `model`. Raises StateDictError as `from_released` does."""
    model.load_state_dict(from_released(model, weights))


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name
