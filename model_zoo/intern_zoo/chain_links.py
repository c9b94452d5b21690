"""The links of a two-tower model's chain (see `chain.py`), and the names under which tensors travel.

b batch, c channels, e width of the common space, l context length, w width of the text tower.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from intern_zoo.text import TextTransformer
from intern_zoo.two_tower import ImageTower, TwoTower, bounded_scale

Carry = dict[str, Tensor]

MAP, TOKENS = "image_map", "text_tokens"
"""Between links of a tower: [b, c, h, w] and [b, l, w]."""


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


class ImageLink(Link):
    tower = "image"


class Stem(ImageLink):
    """A MetaNet's stem: pictures to a map."""

    def __init__(self, unit: str, stem: nn.Module) -> None:
        super().__init__(unit)
        self.stem = stem

    def forward(self, carry: Carry) -> Carry:
        return _changed(carry, "image", **{MAP: self.stem(_channels_last(carry["image"]))})


class Unit(ImageLink):
    """A MetaNet's down-sampling module or block."""

    def __init__(self, unit: str, block: nn.Module) -> None:
        super().__init__(unit)
        self.block = block

    def forward(self, carry: Carry) -> Carry:
        return _changed(carry, **{MAP: self.block(_channels_last(carry[MAP]))})


class ImageHead(ImageLink):
    """A MetaNet's head, pooling, and the projection into the common space."""

    def __init__(self, unit: str, image: ImageTower) -> None:
        super().__init__(unit)
        self.head, self.dropout, self.projection = image.trunk.head, image.trunk.dropout, image.projection
        self._pool = image.trunk.forward_head  # which uses no parameter, without classifier

    def forward(self, carry: Carry) -> Carry:
        image_be = self.projection(self._pool(self.head(_channels_last(carry[MAP]))))
        return _changed(carry, MAP, image_features=F.normalize(image_be, dim=-1))


class WholeImage(ImageLink):
    """An image tower that is not cut."""

    def __init__(self, unit: str, image: ImageTower) -> None:
        super().__init__(unit)
        self.image = image

    def forward(self, carry: Carry) -> Carry:
        return _changed(carry, "image", image_features=F.normalize(self.image(carry["image"]), dim=-1))


class TextLink(Link):
    tower = "text"


class Embedding(TextLink):
    """Token ids to tokens with their positions."""

    def __init__(self, unit: str, text: TextTransformer) -> None:
        super().__init__(unit)
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding

    def forward(self, carry: Carry) -> Carry:
        x_blw = self.token_embedding(carry["text"])
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
        pooled_bw = text_global_pool(self.ln_final(carry[TOKENS]), carry["text"], **self._pooling)
        return _changed(carry, "text", TOKENS, text_features=F.normalize(pooled_bw @ self.text_projection, dim=-1))


class WholeText(TextLink):
    """A text tower that is not cut."""

    def __init__(self, unit: str, text: nn.Module) -> None:
        super().__init__(unit)
        self.text = text

    def forward(self, carry: Carry) -> Carry:
        return _changed(carry, "text", text_features=F.normalize(self.text(carry["text"]), dim=-1))


class Join(Link):
    """The temperature of the scores: the chain's last link, which leaves the fields of the model's output."""

    tower = "join"

    def __init__(self, model: TwoTower) -> None:
        super().__init__("")
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias
        self._bounds = model.min_logit_scale, model.max_logit_scale

    def forward(self, carry: Carry) -> Carry:
        return {name: carry[name] for name in ("image_features", "text_features")} | self.scores()

    def scores(self) -> Carry:
        """Factor and, where there is one, offset of the scores, [1] each."""
        scores = {"logit_scale": bounded_scale(self.logit_scale, *self._bounds)}
        return scores if self.logit_bias is None else scores | {"logit_bias": self.logit_bias.clone()}


def _channels_last(x_bchw: Tensor) -> Tensor:
    """As MetaNet's blocks want it: one that comes from another process may lie otherwise."""
    return x_bchw.contiguous(memory_format=torch.channels_last)
