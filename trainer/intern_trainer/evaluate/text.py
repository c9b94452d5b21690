"""Captions and prompts as the text tower takes them, and stand-ins for ranks that have nothing left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor

from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.text import text_tokenizer

TEMPLATES: dict[str, Sequence[Callable[[str], str]]] = {
    "openai_imagenet": OPENAI_IMAGENET_TEMPLATES,
    "simple": SIMPLE_IMAGENET_TEMPLATES,
    "none": [lambda name: name],
}
"""open_clip's prompt templates: 80, 7, and the bare class name."""


def tokenize(captions: Sequence[str], config: Config) -> Tensor:
    """int64 [n, context_length]."""
    return text_tokenizer(config.model.text)(list(captions))


def prompts(class_name: str, templates: str) -> list[str]:
    return [template(class_name) for template in TEMPLATES[templates]]


def blank_image(config: Config, ranks: Ranks) -> Tensor:
    side = config.model.image_size
    return torch.zeros(1, 3, side, side, device=ranks.device)


def blank_text(config: Config, ranks: Ranks) -> Tensor:
    return torch.zeros(1, config.model.text.context_length, dtype=torch.long, device=ranks.device)
