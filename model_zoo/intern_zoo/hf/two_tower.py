"""The two-tower model as transformers sees it. `flatten` turns this module into the modelling file of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from intern_zoo.hf.text import TextTransformer
from intern_zoo.hf.trunks.metanet import BLOCK_CLASSES, build_trunk
from intern_zoo.two_tower import TwoTower

__all__ = ["InternTwoTowerConfig", "InternTwoTowerModel", "InternTwoTowerOutput"]


class InternTwoTowerConfig(PreTrainedConfig):
    """Shapes of both towers.

    Args:
        image: options of the image model.
        text: `vocab_size`, `eos_id`, `context_length`, `width`, `layers`, `heads` of the text transformer.
        embed_dim: width of the common space.
        max_logit_scale, min_logit_scale: bounds of exp(logit scale).
        logit_bias: whether scores have a learned bias, as SigLIP's.
    """

    model_type = "intern_two_tower"

    def __init__(
        self,
        image: dict[str, Any] | None = None,
        text: dict[str, int] | None = None,
        embed_dim: int = 512,
        max_logit_scale: float = 100.0,
        min_logit_scale: float = 0.0,
        logit_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        self.image = image or {}
        self.text = text or {}
        self.embed_dim = embed_dim
        self.max_logit_scale = max_logit_scale
        self.min_logit_scale = min_logit_scale
        self.logit_bias = logit_bias
        super().__init__(**kwargs)


@dataclass
class InternTwoTowerOutput(ModelOutput):
    """logits_per_image [images, texts] and its transpose; image_embeds, text_embeds: unit vectors [., e]."""

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class InternTwoTowerModel(PreTrainedModel):
    """Pictures and texts in one space; `logits_per_image.softmax(-1)` is the zero-shot classification."""

    config_class = InternTwoTowerConfig
    main_input_name = "pixel_values"
    # the text tower adds a parameter of its own to its children's outputs, so it stays whole
    _no_split_modules = ["TextTransformer", *BLOCK_CLASSES]

    def __init__(self, config: InternTwoTowerConfig) -> None:
        super().__init__(config)
        text = TextTransformer(output_dim=config.embed_dim, **config.text)
        self.model = TwoTower(
            build_trunk(config.image),
            text,
            config.embed_dim,
            config.max_logit_scale,
            config.min_logit_scale,
            initial_logit_bias=0.0 if config.logit_bias else None,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Both towers give themselves their first weights; transformers' defaults would undo that."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Pictures [b, 3, h, w] to unit vectors [b, e]."""
        return self.model.encode_image(pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids [b, l] to unit vectors [b, e]. The mask is not needed: attention is causal."""
        return self.model.encode_text(input_ids)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> InternTwoTowerOutput | tuple[Tensor, ...]:
        image_embeds, text_embeds, logit_scale, logit_bias = self.model(image=pixel_values, text=input_ids)
        logits_per_text = None
        if image_embeds is not None and text_embeds is not None:
            # the towers may live on two devices
            image_embeds, logit_scale = image_embeds.to(text_embeds.device), logit_scale.to(text_embeds.device)
            logits_per_text = logit_scale * text_embeds @ image_embeds.T
            if logit_bias is not None:
                logits_per_text = logits_per_text + logit_bias.to(text_embeds.device)
        logits_per_image = None if logits_per_text is None else logits_per_text.T
        output = InternTwoTowerOutput(logits_per_image, logits_per_text, image_embeds, text_embeds)
        return output.to_tuple() if return_dict is False else output
