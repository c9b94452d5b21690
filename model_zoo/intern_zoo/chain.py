"""A model of two towers as a chain of links, between any two of which a pipeline can cut.

What travels along the chain is a `Carry`, tensors by name: at first the model's inputs, at last the fields of its
output. A link reads what it needs, leaves out what no later link needs, and hands on the rest.

Links hold the model's own modules and parameters; nothing is copied. A parameter is used only inside the call of a
module that owns it directly, as hooks that gather sharded parameters want it: so a link owns the parameters that belong
to a whole tower (positions, projection of the text, temperature) beside the tower. Who replaces parameters by other
objects (leaving the meta device, say) makes the links afterwards, or walks them, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from intern_zoo.chain_links import (
    FEATURES,
    MAPS,
    Carry,
    DeclipJoin,
    Embedding,
    ImageHead,
    Join,
    Link,
    LocalMap,
    Stem,
    TextBlock,
    TextHead,
    Unit,
    WholeImage,
    WholeText,
)
from intern_zoo.declip import DeclipOutput, DeclipTowers
from intern_zoo.errors import NoChainError
from intern_zoo.local import LocalOutput, LocalTowers
from intern_zoo.metanet import MetaNet
from intern_zoo.metanet.model import Stage
from intern_zoo.text import TextTransformer
from intern_zoo.two_tower import TwoTower, TwoTowerOutput

__all__ = ["Carry", "Link", "finish", "links", "prune"]


def links(model: TwoTower, text: str = "last") -> list[Link]:
    """The model as a chain; on the inputs of the model's forward, by name, it gives what that gives, to the bit.

    So are the gradients, but for those of `LocalTowers`, whose projectors run here as soon as their map is there: a map
    that is used three times has its gradients summed in another order.

    A MetaNet is cut at its units and a `TextTransformer` at its blocks; other towers are one link each. Recomputation
    is that of the units: a switch that a whole tower reads in its own forward does nothing here.

    Args:
        text: whether the text tower's links come "first" or, before the join, "last".

    Raises:
        NoChainError: nobody has said how a model of this class runs in parts.
    """
    if type(model) not in (TwoTower, DeclipTowers, LocalTowers):
        raise _no_chain(type(model).__name__, "TwoTower, DeclipTowers and LocalTowers have one.")
    image_links, text_links = _image(model), _text(model)
    frozen = model.frozen_towers()
    for link in [*image_links, *text_links]:
        link.frozen = link.unit.partition(".")[0] in frozen
    towers = [*text_links, *image_links] if text == "first" else [*image_links, *text_links]
    return [*towers, DeclipJoin(model) if isinstance(model, DeclipTowers) else Join(model)]


def finish(carry: Carry) -> TwoTowerOutput | DeclipOutput | LocalOutput:
    """The model's output, of what the last link leaves. (A level's map of `LocalOutput.maps` is "maps.0", ...)"""
    if "projected_2bd" in carry:
        return DeclipOutput(**carry)
    towers = {name: tensor for name, tensor in carry.items() if not name.startswith(MAPS)}
    levels = len(carry) - len(towers)
    if levels == 0:
        return TwoTowerOutput(**{**dict.fromkeys(FEATURES), **towers})  # type: ignore[arg-type]
    maps = [carry[f"{MAPS}{level}"] for level in range(levels)]
    return LocalOutput(logit_bias=towers.pop("logit_bias", None), maps=maps, **towers)


def _image(model: TwoTower) -> list[Link]:
    trunk, local = model.image.trunk, model if isinstance(model, LocalTowers) else None
    normalised = not isinstance(model, DeclipTowers)  # whose projector wants them as they are
    if not isinstance(trunk, MetaNet):
        if local is not None:
            raise _no_chain(f"LocalTowers with a {type(trunk).__name__}", "LocalTowers with a MetaNet has one.")
        return [WholeImage("image", model.image, normalised)]
    chain: list[Link] = [Stem("image.trunk.stem", trunk.stem)]
    names = {unit: name for name, unit in model.named_modules()}
    for number, stage in enumerate(trunk.stages):
        chain += [Unit(names[unit], unit) for unit in cast(Stage, stage).units()]
        if local is not None:
            levels = zip(local.levels, local.heads, strict=True)
            chain += [LocalMap(names[head], head) for i, head in levels if trunk.config.out_stages[i] == number]
    return [*chain, ImageHead("image.trunk.head", model.image, normalised, first=local is not None)]


def _text(model: TwoTower) -> list[Link]:
    tower = model.text
    if type(tower) is not TextTransformer:  # a packed one is, too, and keeps more between its blocks than tokens
        return [WholeText("text", tower)]
    blocks = [TextBlock(f"text.transformer.resblocks.{i}", b) for i, b in enumerate(tower.transformer.resblocks)]
    return [Embedding("text.token_embedding", tower), *blocks, TextHead("text.ln_final", tower)]


def _no_chain(found: str, rule: str) -> NoChainError:
    return NoChainError(f"{found} has no chain of links.", rule, "Train it without a pipeline.")


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
