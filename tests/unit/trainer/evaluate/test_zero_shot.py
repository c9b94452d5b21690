"""Prompts and class features."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from intern_trainer.config.schema import Config, ZeroShot
from intern_trainer.data import embedded
from intern_trainer.evaluate.text import TEMPLATES, prompts, tokenize
from intern_trainer.evaluate.zero_shot import class_features, class_prompt
from torch import Tensor

from tests.unit.trainer.doubles import ONE_RANK

CONFIG = Config.model_validate({"model": {"embed_dim": 6, "text": {"context_length": 16}}})


def test_templates_are_open_clips() -> None:
    assert [len(TEMPLATES[name]) for name in ("openai_imagenet", "simple", "none")] == [80, 7, 1]
    assert prompts("cat", "none") == ["cat"]
    assert "itap of a cat." in prompts("cat", "simple")


def test_folder_names_become_words_and_embedded_categories_have_their_own() -> None:
    assert class_prompt("golden_retriever", ZeroShot(data="/data/pets")) == "golden retriever"
    assert class_prompt("animals", ZeroShot(data="embedded:test")) == "animal"
    assert set(embedded.PROMPTS) <= set(embedded.categories())
    assert len({class_prompt(name, ZeroShot(data="embedded:test")) for name in embedded.categories()}) == 20


def test_a_class_is_the_unit_mean_of_its_prompts() -> None:
    table = torch.randn(50_000, 6, generator=torch.Generator().manual_seed(0))

    def forward(text: Tensor) -> SimpleNamespace:
        return SimpleNamespace(text_features=F.normalize(table[text].sum(dim=1), dim=-1))

    names = ["cat", "dog"]
    found = class_features(forward, names, "simple", CONFIG, ONE_RANK)
    for row, name in zip(found, names, strict=True):
        each = torch.stack([forward(tokenize([p], CONFIG)).text_features[0] for p in prompts(name, "simple")])
        assert torch.allclose(row, F.normalize(each.mean(dim=0), dim=0), atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_prompts_go_through_the_tower_in_batches() -> None:
    sizes = []

    def forward(text: torch.Tensor) -> SimpleNamespace:
        sizes.append(len(text))
        return SimpleNamespace(text_features=torch.ones(len(text), 4))

    config = Config.model_validate({"evaluate": {"batch": 3}, "model": {"embed_dim": 4}})
    class_features(forward, ["bird", "cat"], "simple", config, ONE_RANK)
    assert sizes == [3, 3, 1] * 2
