"""The links of a two-tower model's chain (see `chain.py`), and the names under which tensors travel.

b batch (where a model takes two views, those of first and second ones, one after the other), c channels, e width of the
common space, l context length, n masked tokens, w width of the text tower.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from intern_zoo.declip import DeclipTowers, joined, masked_tokens
from intern_zoo.text import TextTransformer
from intern_zoo.two_tower import ImageTower, TwoTower, bounded_scale

Carry = dict[str, Tensor]

MAP, MAP_2, TOKENS = "image_map", "image_2map", "text_tokens"
"""Between links of a tower: [b, c, h, w], of one view or of two, and [b, l, w]."""
MASKED = "masked_tokens"
"""[n, w]: what DeCLIP's join guesses words from."""
MAPS = "maps."
"""So begin the names of projected maps, [b, d, h, w] each, with a number behind."""


class Link(nn.Module):
    """A piece of a model.

    Attributes:
        tower: "image", "text" or "join".
        unit: what it runs, by its name in the model.
        frozen: the whole tower is, when the link is made: the link then stays in evaluation mode, as the tower does.
    """

    tower: str

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit, self.frozen = unit, False

    def forward(self, carry: Carry) -> Carry:
        """A new carry; the given one stays as it is."""
        raise NotImplementedError

    def parts(self) -> list[nn.Module | nn.Parameter]:
        """What it holds of the model: modules as wholes, and single parameters."""
        return [*self.children(), *self.parameters(recurse=False)]

    def train(self, mode: bool = True) -> Link:
        return super().train(mode and not self.frozen)

    def extra_repr(self) -> str:
        return self.unit


def _changed(carry: Carry, *gone: str, **new: Tensor) -> Carry:
    return {name: tensor for name, tensor in carry.items() if name not in gone} | new


def _views(carry: Carry, name: str) -> Tensor:
    """Both views as one batch, where there are two."""
    second = f"{name}2"
    return torch.cat([carry[name], carry[second]]) if second in carry else carry[name]


class ImageLink(Link):
    tower = "image"

    def map_of(self, carry: Carry) -> tuple[str, Tensor]:
        """The map's name and the map, channels-last as MetaNet's modules want it: one that comes from another process
        may lie otherwise.
        """
        name = MAP_2 if MAP_2 in carry else MAP
        return name, _channels_last(carry[name])


class Stem(ImageLink):
    """A MetaNet's stem: pictures to a map."""

    def __init__(self, unit: str, stem: nn.Module) -> None:
        super().__init__(unit)
        self.stem = stem

    def forward(self, carry: Carry) -> Carry:
        name = MAP_2 if "image2" in carry else MAP
        return _changed(carry, "image", "image2", **{name: self.stem(_channels_last(_views(carry, "image")))})


class Unit(ImageLink):
    """A MetaNet's down-sampling module or block."""

    def __init__(self, unit: str, block: nn.Module) -> None:
        super().__init__(unit)
        self.block = block

    def forward(self, carry: Carry) -> Carry:
        name, x_bchw = self.map_of(carry)
        return _changed(carry, **{name: self.block(x_bchw)})


class LocalMap(ImageLink):
    """A projector of the local phase: from the map of two views another one, which stays to the end."""

    def __init__(self, unit: str, project: nn.Module) -> None:
        super().__init__(unit)
        self.project, self._name = project, f"{MAPS}{unit.rpartition('.')[2]}"

    def forward(self, carry: Carry) -> Carry:
        name, x_bchw = self.map_of(carry)
        return _changed(carry, **({self._name: self.project(x_bchw)} if name == MAP_2 else {}))


class ImageHead(ImageLink):
    """A MetaNet's head, pooling, and the projection into the common space.

    Args:
        normalised: whether to leave unit vectors. first: whether to leave those of the first view alone.
    """

    def __init__(self, unit: str, image: ImageTower, normalised: bool = True, first: bool = False) -> None:
        super().__init__(unit)
        self._normalised, self._first = normalised, first
        self.head, self.dropout, self.projection = image.trunk.head, image.trunk.dropout, image.projection
        self._pool = image.trunk.forward_head  # which uses no parameter, without classifier

    def forward(self, carry: Carry) -> Carry:
        name, x_bchw = self.map_of(carry)
        pooled_bf = self._pool(self.head(x_bchw))
        if self._first and name == MAP_2:
            pooled_bf = pooled_bf[: len(pooled_bf) // 2]
        image_be = self.projection(pooled_bf)
        return _changed(carry, name, image_features=F.normalize(image_be, dim=-1) if self._normalised else image_be)


class WholeImage(ImageLink):
    """An image tower that is not cut."""

    def __init__(self, unit: str, image: ImageTower, normalised: bool = True) -> None:
        super().__init__(unit)
        self.image, self._normalised = image, normalised

    def forward(self, carry: Carry) -> Carry:
        image_be = self.image(_views(carry, "image"))
        image_be = F.normalize(image_be, dim=-1) if self._normalised else image_be
        return _changed(carry, "image", "image2", image_features=image_be)


class TextLink(Link):
    tower = "text"

    def left(self, carry: Carry, pooled_be: Tensor, tokens_blw: Tensor | None) -> Carry:
        """The carry behind the tower."""
        features: Carry = {"text_features": F.normalize(pooled_be, dim=-1)}
        if "text_labels" in carry and tokens_blw is not None:
            features[MASKED] = masked_tokens(tokens_blw, carry["text_labels"])
        return _changed(carry, "text", "text2", "text_labels", TOKENS, **features)


class Embedding(TextLink):
    """Token ids to tokens with their positions."""

    def __init__(self, unit: str, text: TextTransformer) -> None:
        super().__init__(unit)
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding

    def forward(self, carry: Carry) -> Carry:
        x_blw = self.token_embedding(_views(carry, "text"))
        return _changed(carry, **{TOKENS: x_blw + self.positional_embedding[: x_blw.shape[1]].to(x_blw.dtype)})


class TextBlock(TextLink):
    """A residual block with a causal mask."""

    def __init__(self, unit: str, block: nn.Module) -> None:
        super().__init__(unit)
        self.block = block

    def forward(self, carry: Carry) -> Carry:
        x_blw = carry[TOKENS]
        length = x_blw.shape[1]
        mask_ll = x_blw.new_full((length, length), float("-inf")).triu_(1)
        return _changed(carry, **{TOKENS: self.block(x_blw, attn_mask=mask_ll)})


class TextHead(TextLink):
    """Normalisation, the end token's vector, and its projection into the common space."""

    def __init__(self, unit: str, text: TextTransformer) -> None:
        super().__init__(unit)
        self.ln_final, self.text_projection = text.ln_final, text.text_projection
        self._pooling: dict[str, Any] = {"pool_type": text.pool_type, "eos_token_id": text.eos_id}

    def forward(self, carry: Carry) -> Carry:
        x_blw = self.ln_final(carry[TOKENS])
        pooled_bw = text_global_pool(x_blw, _views(carry, "text"), **self._pooling)
        return self.left(carry, pooled_bw @ self.text_projection, x_blw)


class WholeText(TextLink):
    """A text tower that is not cut."""

    def __init__(self, unit: str, text: nn.Module) -> None:
        super().__init__(unit)
        self.text = text

    def forward(self, carry: Carry) -> Carry:
        out = self.text(_views(carry, "text"))
        pooled_be, tokens_blw = out if isinstance(out, tuple) else (out, None)
        return self.left(carry, pooled_be, tokens_blw)


class Join(Link):
    """The temperature of the scores: the chain's last link, which leaves the fields of the model's output."""

    tower = "join"

    def __init__(self, model: TwoTower) -> None:
        super().__init__("")
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias
        self._bounds = model.min_logit_scale, model.max_logit_scale

    def forward(self, carry: Carry) -> Carry:
        maps = {name: tensor for name, tensor in carry.items() if name.startswith(MAPS)}
        return {name: carry[name] for name in ("image_features", "text_features")} | self.scores() | maps

    def scores(self) -> Carry:
        """Factor and, where there is one, offset of the scores, [1] each."""
        scores = {"logit_scale": bounded_scale(self.logit_scale, *self._bounds)}
        return scores if self.logit_bias is None else scores | {"logit_bias": self.logit_bias.clone()}


class DeclipJoin(Join):
    """With DeCLIP's heads, and its queue, which the loss reads and writes. Image features come without unit norm."""

    def __init__(self, model: DeclipTowers) -> None:
        super().__init__(model)
        self.heads = model.heads

    def forward(self, carry: Carry) -> Carry:
        if MASKED not in carry:
            return super().forward(carry | {"image_features": F.normalize(carry["image_features"], dim=-1)})
        scale = self.scores()["logit_scale"]
        return joined(self.heads, carry["image_features"], carry["text_features"], carry[MASKED], scale)._asdict()


def _channels_last(x_bchw: Tensor) -> Tensor:
    return x_bchw.contiguous(memory_format=torch.channels_last)
