"""The pictures that come with the package: a few MB of titled clip-art in 20 categories (see ORIGIN.md)."""

from __future__ import annotations

from pathlib import Path

from intern_trainer.data.embedded.titles import CATEGORIES
from intern_trainer.errors import ConfigError

SPLITS = ("train", "validation", "test")
PROMPTS = {
    "animals": "animal", "birds": "bird", "buildings": "building", "computers": "computer", "flags": "flag",
    "insects": "insect", "maps": "map", "office supplies": "office", "patterns": "pattern", "plants": "plant",
    "signs": "symbol", "sports and games": "sports", "tools": "tool", "vehicles": "transport",
}  # fmt: skip
"""What a category is called in a prompt: the word that the artists' keywords use for it in the training split. To a
model that has seen nothing but this set, `animals` is another token than `animal`, and one that it never met."""


def shards(split: str) -> list[Path]:
    """The tar files of a split.

    Raises:
        ConfigError: there is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(
            f"embedded:{split}", f"the embedded data has the splits {', '.join(SPLITS)}", "write embedded:train, say"
        )
    return sorted((Path(__file__).parent / "shards").glob(f"{split}-*.tar"))


def categories() -> list[str]:
    """The names of the 20 categories, sorted."""
    return list(CATEGORIES)
