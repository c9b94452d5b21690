"""Image-text pretraining with the loss of CLIP or of SigLIP over all ranks."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import intern_zoo
from intern_zoo.two_tower import TwoTower, create_two_tower
from torch import Tensor

from intern_trainer.batch import Batch
from intern_trainer.collectives import all_gather
from intern_trainer.config.schema import Config
from intern_trainer.data import PlainText, Views
from intern_trainer.data.token_drop import TokenDrop
from intern_trainer.errors import ConfigError
from intern_trainer.observe.places import place
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.base import Forward, Outputs
from intern_trainer.tasks.freeze import freeze
from intern_trainer.tasks.over_ranks import clip_loss, siglip_loss
from intern_trainer.text import text_options, text_tokenizer


class ContrastiveTask:
    """Two towers, pulled together where picture and caption belong together and apart where they do not."""

    name = "contrastive"
    shared = frozenset({"logit_scale", "logit_bias"})
    _input_names: tuple[str, ...] = ("image", "text")

    def __init__(self, config: Config, ranks: Ranks) -> None:
        known = intern_zoo.list_models()
        if config.model.image not in known:
            near = difflib.get_close_matches(config.model.image, known, 3, 0.5)
            raise ConfigError(
                f"model.image is {config.model.image!r}",
                "it must be a model of the zoo",
                f"did you mean {', '.join(near)}?" if near else "intern_zoo.list_models() lists them",
            )
        self.config, self.ranks = config, ranks

    @property
    def views(self) -> Views:
        words, share = text_tokenizer(self.config.model.text), self.config.data.augment.drop_tokens
        drop = TokenDrop(share, words.sot_token_id, words.eot_token_id) if share else None
        return Views(texts=PlainText(words, drop))

    @property
    def towers(self) -> Callable[..., TwoTower]:
        """Makes the model of both towers, see `create_two_tower`."""
        return TwoTower

    def build_model(self) -> TwoTower:
        model, loss = self.config.model, self.config.loss
        siglip = loss.kind == "siglip"
        usual = min(max(10.0 if siglip else 1 / 0.07, model.min_logit_scale), model.max_logit_scale)
        try:
            towers = create_two_tower(
                image=model.image,
                image_options=dict(model.image_options),
                image_size=model.image_size,
                embed_dim=model.embed_dim,
                text=text_options(model.text),
                model=self.towers,
                max_logit_scale=model.max_logit_scale,
                min_logit_scale=model.min_logit_scale,
                initial_logit_scale=loss.initial_scale or usual,
                initial_logit_bias=loss.initial_bias if siglip else None,
            )
        except (TypeError, ValueError) as error:  # the zoo's word on an option that it does not know
            raise ConfigError(
                f"{model.image} with model.image_options {model.image_options}: {error}",
                "options must be ones of the image tower's constructor",
                "correct model.image_options",
            ) from error
        freeze(towers, model.freeze)
        return towers

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: batch.tensors[name] for name in self._input_names if name in batch.tensors}

    def forward(self, model: Forward, batch: Batch) -> Outputs:
        """`image_features`, `text_features` [b, e], `logit_scale` [1], and for SigLIP `logit_bias` [1]."""
        out = model(**self.inputs(batch))._asdict()
        return {name: tensor for name, tensor in out.items() if tensor is not None}

    @place("loss")
    def loss(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the global batch, whose rows of this rank these are; no rank holds more scores than b x `loss.block`."""
        image_be, text_be, scale = outputs["image_features"], outputs["text_features"], outputs["logit_scale"]
        metrics = {name: outputs[name].detach().squeeze() for name in sorted(self.shared & outputs.keys())}
        if self.config.loss.kind == "siglip":
            bias = outputs["logit_bias"]
            loss, hits = siglip_loss(image_be, text_be, scale, bias, self.ranks, self.config.loss.block)
        else:
            loss, hits = clip_loss(image_be, all_gather(text_be, self.ranks.group), scale, self.ranks, self.config.loss.block)
        return loss, {"batch_accuracy": hits / len(image_be), **metrics}
