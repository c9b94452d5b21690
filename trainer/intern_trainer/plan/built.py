"""A recipe's model as a plan takes it: on meta, and what it is called with."""

from __future__ import annotations

from typing import Protocol

import torch
from intern_zoo.chain import Link
from intern_zoo.metanet.norm import BatchNorm
from intern_zoo.text import create_text_transformer
from intern_zoo.text.packed import PackedTextTransformer
from torch import Tensor, nn

from intern_trainer.config.schema import Config
from intern_trainer.data import Views
from intern_trainer.plan.measure import Inputs

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HasModel(Protocol):
    """What a plan asks of a task."""

    @property
    def views(self) -> Views: ...
    def build_model(self) -> nn.Module: ...


def build_on_meta(task: HasModel, shared_norms: bool) -> nn.Module:
    """`shared_norms`: batch norms share statistics over ranks, which keeps more for their backward passes."""
    with torch.device("meta"):
        model = task.build_model()
    for module in model.modules():
        if shared_norms and isinstance(module, BatchNorm):
            module.reduce_stats = torch.clone  # as a sum over ranks, it makes a new vector
    return model


def with_full_captions(link: Link, config: Config) -> None:
    """A packed text tower computes as many tokens as captions have, which fake ones do not say: in its place the plain
    one, of the same parameters."""
    tower = getattr(link, "text", None)
    if isinstance(tower, PackedTextTransformer):
        text = config.model.text
        with torch.device("meta"):
            link.text = create_text_transformer(
                config.model.embed_dim, text.width, text.layers, text.heads, text.context_length, tower.vocab_size
            )


def inputs_of(config: Config, task: HasModel, side: int, samples: int) -> Inputs:
    """All views of so many samples; captions are taken as full."""
    views, length = task.views, config.model.text.context_length

    def inputs() -> dict[str, Tensor]:
        pictures = torch.zeros(samples * views.images, 3, side, side)
        return {"image": pictures, "text": torch.zeros(samples * views.captions, length, dtype=torch.long)}

    return inputs
