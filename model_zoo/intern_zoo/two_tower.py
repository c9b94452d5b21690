"""Two towers, one space: a picture and its caption get unit vectors that lie close (CLIP, arXiv 2103.00020).

b batch, e width of the common space, f features of the image tower, l context length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_zoo.registry import create_model
from intern_zoo.text import TextTransformer, create_text_transformer
from intern_zoo.weight_decay import offsets_and_factors

AUXILIARY = ("heads.", "text.token_embedding.mask")
"""How names begin of what serves a loss of training alone: neither exported, nor needed to start another run from."""

OPTIONAL = (*AUXILIARY, "logit_bias")
"""What other weights of the same towers may lack, or have besides: it depends on the loss."""


class TwoTowerOutput(NamedTuple):
    """Features: [b, e], unit norm, None for a tower that was not asked. logit_scale: [1], exp'd and bounded.
    logit_bias: [1], None where the model has none."""

    image_features: Tensor | None
    text_features: Tensor | None
    logit_scale: Tensor
    logit_bias: Tensor | None = None


class ImageTower(nn.Module):
    """A headless image model and the projection of its pooled features into the common space."""

    def __init__(self, trunk: Any, embed_dim: int) -> None:
        super().__init__()
        self.trunk: Any = trunk  # MetaNet or one of timm's, which share verbs and no base class
        self.projection = nn.Linear(trunk.num_features, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=trunk.num_features**-0.5)

    def forward(self, x_b3hw: Tensor) -> Tensor:
        return self.projection(self.trunk(x_b3hw))


class TwoTower(nn.Module):
    """Image tower, text tower and the temperature between them.

    Args:
        image: image model without classifier (`num_classes=0`): [b, 3, h, w] to pooled features [b, f].
        text: text transformer: token ids [b, l] to [b, e].
        embed_dim: e.
        max_logit_scale, min_logit_scale: bounds of exp(logit scale); CLIP's upper one is 100.
        initial_logit_scale: exp(logit scale) at the start; CLIP's 1 / 0.07.
        initial_logit_bias: with a number, the model learns a bias of all scores that starts there, as SigLIP does.
    """

    def __init__(
        self,
        image: nn.Module,
        text: TextTransformer,
        embed_dim: int,
        max_logit_scale: float = 100.0,
        min_logit_scale: float = 0.0,
        initial_logit_scale: float = 1 / 0.07,
        initial_logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.image = ImageTower(image, embed_dim)
        self.text = text
        self.max_logit_scale, self.min_logit_scale = max_logit_scale, min_logit_scale
        # shape [1]: DeepSpeed cannot view a parameter without dimensions as bytes
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(initial_logit_scale)))
        bias = initial_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.full((1,), bias))
        self.frozen_in_whole: frozenset[str] | None = None  # `chain.prune` notes it: a part cannot tell

    def train(self, mode: bool = True) -> TwoTower:
        """A tower whose parameters are all frozen stays in evaluation mode: its running statistics are frozen, too."""
        super().train(mode)
        for name in self.frozen_towers():
            self.get_submodule(name).eval()
        return self

    def frozen_towers(self) -> frozenset[str]:
        """Of "image" and "text" those whose parameters are all frozen; of a part of a model, those of the whole."""
        if self.frozen_in_whole is not None:
            return self.frozen_in_whole
        towers = {"image": self.image, "text": self.text}
        return frozenset(name for name, tower in towers.items() if not any(p.requires_grad for p in tower.parameters()))

    def encode_image(self, image: Tensor) -> Tensor:
        """[b, 3, h, w] to unit vectors [b, e]."""
        return F.normalize(self.image(image), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids [b, l] to unit vectors [b, e]."""
        return F.normalize(self.text(text), dim=-1)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> TwoTowerOutput:
        return TwoTowerOutput(
            None if image is None else self.encode_image(image),
            None if text is None else self.encode_text(text),
            self.bounded_logit_scale(),
            None if self.logit_bias is None else self.logit_bias.clone(),  # outputs outlive a sharded parameter
        )

    @staticmethod
    def output(**fields: Tensor) -> TwoTowerOutput:
        """`forward`'s result of its fields; those that are not given are None."""
        absent = dict.fromkeys(("image_features", "text_features"))
        return TwoTowerOutput(**{**absent, **fields})  # type: ignore[arg-type]

    def bounded_logit_scale(self) -> Tensor:
        """[1], the factor that dot products of features are multiplied by."""
        return bounded_scale(self.logit_scale, self.min_logit_scale, self.max_logit_scale)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.image.trunk.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Full names of the parameters that weight decay would only harm: offsets, factors, positions, temperature."""
        parameters = dict(self.named_parameters())
        named = self.image.trunk.no_weight_decay()  # timm's name more than their model has
        image = {f"image.trunk.{name}" for name in named} & parameters.keys()
        return offsets_and_factors(self) | image | {"text.positional_embedding"}


def bounded_scale(logit_scale: Tensor, low: float, high: float) -> Tensor:
    """exp of the learned [1], between two bounds."""
    return _Bounded.apply(logit_scale.exp(), low, high)


class _Bounded(torch.autograd.Function):
    """x between two bounds, whose gradient vanishes only where it would push x further out, so that x can come back.

    CLIP cuts the parameter itself after each step; a parameter that ZeRO has sharded is not there to be cut.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x <= low, x >= high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients  # against it x will move
        at_low, at_high = ctx.saved_tensors
        outwards = (at_low & (gradient > 0)) | (at_high & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None


def create_two_tower(
    image: str,
    image_size: int,
    embed_dim: int,
    text: dict[str, Any],
    image_options: dict[str, Any] | None = None,
    model: Callable[..., TwoTower] = TwoTower,
    **scores: float | None,
) -> TwoTower:
    """Build both towers by name.

    Args:
        image: image model, a name that `intern_zoo.list_models()` knows.
        image_size: side of the training picture in pixels, for those image models whose parameters depend on it.
        embed_dim: width of the common space.
        text: what `create_text_transformer` takes besides.
        image_options: overrides for the image model's constructor.
        model: makes the model of both towers and `embed_dim`.
        scores: what `TwoTower` takes about scale and bias of its scores.
    """
    trunk = create_model(image, num_classes=0, **sized_options(image, image_size, image_options or {}))
    return model(trunk, create_text_transformer(embed_dim, **text), embed_dim, **scores)


def sized_options(image: str, image_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """`options`, with the picture's side for models whose parameters depend on it (ViTs: one position a patch)."""
    return options if takes_any_size(image) else {"img_size": image_size, **options}


def takes_any_size(image: str) -> bool:
    """Whether no parameter of the image model depends on the picture's side."""
    known = timm.get_pretrained_cfg(image)  # of MetaNets, too: the registry made them known to timm
    return known is None or not known.fixed_input_size
