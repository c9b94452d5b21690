"""The blocks of a model: what is computed again, compiled, planned and cut as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of both towers by their names in the model, in the order in which they run, none inside another: a
    MetaNet's units, the blocks of timm's networks, the text transformer's.
    """
    names = {id(module): name for name, module in model.named_modules()}
    blocks = [*_image_blocks(model.image.trunk), *model.text.transformer.resblocks]  # type: ignore[union-attr, misc, arg-type]
    return [(names[id(block)], block) for block in blocks]


def repeats_cheaply(block: nn.Module) -> bool:
    """Whether a second forward pass frees much memory for its time. So it is where maps lie between a depthwise
    convolution, norms and activations, and nothing is attended to: such blocks move more than they compute, keep most
    of it, and are wide where pictures are large. Of MetaNet: the inverted residuals and the down-sampling before them.
    """
    inside = list(block.modules())
    depthwise = any(isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for m in inside)
    return depthwise and not any(isinstance(m, nn.Linear) for m in inside)


def _image_blocks(trunk: nn.Module) -> list[nn.Module]:
    if hasattr(trunk, "units"):
        return trunk.units()  # type: ignore[operator]
    places = ("blocks", "stages", "layer1", "layer2", "layer3", "layer4")
    return [block for place in places if hasattr(trunk, place) for block in _leaves(getattr(trunk, place))]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Of sequences in sequences, and of stages that hold their blocks as `blocks`."""
    if hasattr(module, "blocks"):
        yield from _leaves(module.blocks)  # type: ignore[arg-type]
    elif isinstance(module, nn.Sequential | nn.ModuleList):
        for part in module:
            yield from _leaves(part)
    else:
        yield module
