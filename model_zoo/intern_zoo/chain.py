"""A model of two towers as a chain of links, between any two of which a pipeline can cut.

What travels along the chain is a `Carry`, tensors by name: at first the model's inputs, at last the fields of its
output. A link reads what it needs, leaves out what no later link needs, and hands on the rest.

Links hold the model's own modules and parameters; nothing is copied. A parameter is used only inside the call of a
module that owns it directly, as hooks that gather sharded parameters want it: so a link owns the parameters that belong
to a whole tower (positions, projection of the text, temperature) beside the tower.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from intern_zoo.chain_links import (
    Carry,
    Embedding,
    ImageHead,
    Join,
    Link,
    Stem,
    TextBlock,
    TextHead,
    Unit,
    WholeImage,
    WholeText,
)
from intern_zoo.errors import NoChainError
from intern_zoo.metanet import MetaNet
from intern_zoo.text import TextTransformer
from intern_zoo.two_tower import TwoTower

__all__ = ["Carry", "Link", "links", "prune"]


def links(model: TwoTower, text: str = "last") -> list[Link]:
    """The model as a chain; on `dict(image=..., text=...)` it gives what the model's forward gives, to the bit.

    A MetaNet is cut at its units and a `TextTransformer` at its blocks; other towers are one link each.

    Args:
        text: whether the text tower's links come "first" or, before the join, "last".

    Raises:
        NoChainError: the model is of a class whose forward this module does not know.
    """
    if type(model) is not TwoTower:
        raise NoChainError(
            f"{type(model).__name__} has no chain of links.",
            f"{TwoTower.__name__} has one.",
            "Train it without a pipeline.",
        )
    image_links, text_links = _image(model), _text(model)
    for name in model.frozen_towers():
        for link in [*image_links, *text_links]:
            link.frozen |= link.tower == name
    towers = [*text_links, *image_links] if text == "first" else [*image_links, *text_links]
    return [*towers, Join(model)]


def _image(model: TwoTower) -> list[Link]:
    trunk = model.image.trunk
    if not isinstance(trunk, MetaNet):
        return [WholeImage("image", model.image)]
    names = {module: name for name, module in model.named_modules()}
    units = [Unit(names[unit], unit) for unit in trunk.units()]
    return [Stem(names[trunk.stem], trunk.stem), *units, ImageHead(names[trunk.head], model.image)]


def _text(model: TwoTower) -> list[Link]:
    tower = model.text
    if type(tower) is not TextTransformer:  # a packed one is, too, and keeps more between its blocks than tokens
        return [WholeText("text", tower)]
    blocks = [TextBlock(f"text.transformer.resblocks.{i}", b) for i, b in enumerate(tower.transformer.resblocks)]
    return [Embedding("text.token_embedding", tower), *blocks, TextHead("text.ln_final", tower)]


def prune(model: nn.Module, keep: Sequence[Link]) -> None:
    """Take out of a model what the links `keep` of it do not use, in place: what stays keeps its name.

    Blocks become `nn.Identity`, parameters None; modules that only contain others stay, so that the model still answers
    for what it has. Its forward does not work any more: run the links. Tensors that are not saved and follow from
    shapes (the causal mask) go from every part.

    Raises:
        NoChainError: see `links`.
    """
    assert isinstance(model, TwoTower)
    kept = {id(part) for link in keep for part in link.parts()}
    known = kept | {id(part) for link in links(model) for part in link.parts()}
    model.frozen_in_whole = model.frozen_towers()
    _strip(model, kept, known)


def _strip(module: nn.Module, kept: set[int], known: set[int]) -> None:
    for name, child in list(module.named_children()):
        if id(child) not in known:
            _strip(child, kept, known)
        elif id(child) not in kept:
            setattr(module, name, nn.Identity())
    own: tuple[dict[str, Tensor | None], ...] = (module._parameters, module._buffers)  # type: ignore[assignment]
    for tensors in own:
        tensors.update({name: None for name, tensor in tensors.items() if id(tensor) not in kept})
