"""The model card is made to be given away."""

from __future__ import annotations

from intern_trainer.config.schema import Config
from intern_trainer.export.card import model_card


def test_no_credentials_of_a_data_source_are_published() -> None:
    config = Config.model_validate({"data": {"train": "https://user:pa55@host/a.tar?X-Amz-Signature=abc"}})
    card = model_card(config, "hf", "zero-shot-image-classification", (), 1, {}, [])
    assert "@" not in card.split("## Recipe")[1].replace("R@", "")
    assert "pa55" not in card
    assert "Signature" not in card
    assert "host/a.tar" in card


def test_a_sigmoid_models_card_says_what_its_logits_are() -> None:
    cards = {
        kind: model_card(Config.model_validate({"loss": {"kind": kind}}), "hf", "task", (), 1, {}, [])
        for kind in ("clip", "siglip")
    }
    assert ".sigmoid()" in cards["siglip"]
    assert "kind: siglip" in cards["siglip"]
    assert ".sigmoid()" not in cards["clip"]
