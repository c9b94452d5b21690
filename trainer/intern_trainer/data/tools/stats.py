"""`intern-trainer data stats`: what a source is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from intern_trainer.config.schema import Config
from intern_trainer.data import index
from intern_trainer.data.storage import Storage
from intern_trainer.data.tools.duplicates import alike_groups, equal_groups
from intern_trainer.data.tools.pieces import Chosen, choose, sample_id
from intern_trainer.data.tools.pool import each
from intern_trainer.data.tools.results import write_text
from intern_trainer.data.tools.stats_table import show
from intern_trainer.data.tools.tally import Tally, tally

SIDES = (0, 32, 64, 96, 128, 160, 224, 256, 384, 512, 768, 1024, 2048)
ASPECTS = (0, 33, 50, 67, 90, 111, 150, 200, 300)
"""Hundredths of width over height."""
CHARACTERS = (0, 1, 10, 20, 40, 80, 160, 320, 640, 1280)
TOKENS = (0, 4, 8, 16, 32, 64, 77, 128, 256)
GROUPS, MEMBERS = 20, 5
"""Examples of duplicates that are named."""


def stats(
    locations: list[str], config: Config, workers: int, to: Path | None = None, sample: int | None = None, seed: int = 0
) -> int:
    """Print what the shards hold, and write it as JSON. Gives the exit code.

    Args:
        sample: look at this many samples only, drawn evenly with `seed`.
    """
    chosen = choose(locations, config.data, workers, sample, seed)
    for error in chosen.failures.values():
        Console(stderr=True).print(f"left out: {error.found}", markup=False, soft_wrap=True)
    numbers = {shard: number for number, shard in enumerate(dict.fromkeys(piece.shard for piece in chosen.pieces))}
    work = [(numbers[piece.shard], piece) for piece in chosen.pieces]
    total = Tally()
    for part in each(partial(tally, config), work, workers, "samples", lambda one: len(one[1])):
        total.add(part)
    facts = _facts(total, chosen, list(numbers), config, sample, seed)
    if to is not None:
        write_text(to, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    show(facts, Console(markup=False, emoji=False))  # names of members, languages and samples are the data's own
    return 0


def _facts(
    total: Tally, chosen: Chosen, opened: list[str], config: Config, sample: int | None, seed: int
) -> dict[str, Any]:
    hashes = np.concatenate([*total.hashes, np.zeros((0, 4), np.uint64)])
    context = config.model.text.context_length
    return {
        "shards": chosen.shards,
        "shards_unusable": {shard: error.found for shard, error in chosen.failures.items()},
        "shards_opened": chosen.opened,
        "samples_in_opened_shards": chosen.samples,
        "samples_looked_at": total.samples,
        "sampled": None if sample is None else {"samples": sample, "seed": seed},
        "bytes": total.bytes,
        "members": dict(total.members.most_common()),
        "bad": dict(total.bad.most_common()),
        "picture_formats": dict(total.formats.most_common()),
        "picture_kib": _spread(total.picture_bytes),
        "short_side": {**_spread(total.short_side), "histogram": _histogram(total.short_side, SIDES)},
        "long_side": {**_spread(total.long_side), "histogram": _histogram(total.long_side, SIDES)},
        "width_by_height": {
            **_spread(total.aspect_percent, 100),
            "histogram": _histogram(total.aspect_percent, ASPECTS, 100),
        },
        "captions_per_picture": {str(number): count for number, count in sorted(total.captions.items())},
        "caption_characters": {**_spread(total.characters), "histogram": _histogram(total.characters, CHARACTERS)},
        "caption_tokens": {
            **_spread(total.tokens),
            "histogram": _histogram(total.tokens, TOKENS),
            "context_length": context,
            "cut": sum(count for tokens, count in total.tokens.items() if tokens > context),
        },
        "languages": dict(total.languages.most_common()),
        "duplicates": {
            "among": len(hashes),
            "pictures": _groups(alike_groups(hashes[:, 2]), hashes, opened, config.data.index_dir),
            "captions": _groups(equal_groups(hashes[:, 3]), hashes, opened, config.data.index_dir),
        },
    }


def _spread(counts: Counter[int], unit: int = 1) -> dict[str, float | None]:
    """Smallest, quantiles, largest, mean of what was counted in 1/unit."""
    values = np.array(sorted(counts))
    if not len(values):
        return dict.fromkeys(("min", "p5", "median", "p95", "max", "mean"))
    ends = np.cumsum([counts[value] for value in values.tolist()])

    def scaled(value: float) -> float:
        return round(value / unit, 2) if unit > 1 else value

    def quantile(share: float) -> float:
        return scaled(int(values[np.searchsorted(ends, share * ends[-1])]))

    mean = sum(value * count for value, count in counts.items()) / int(ends[-1])
    middle = {"p5": quantile(0.05), "median": quantile(0.5), "p95": quantile(0.95)}
    return {"min": scaled(int(values[0])), **middle, "max": scaled(int(values[-1])), "mean": scaled(round(mean, 1))}


def _histogram(counts: Counter[int], edges: Iterable[int], unit: int = 1) -> dict[str, int]:
    """How many lie in [edge, next edge), edges in 1/unit; the last has no end."""

    def label(edge: int) -> str:
        return f"{edge / unit:.2f}" if unit > 1 else str(edge)

    filled: dict[str, int] = {}
    for low, high in pairwise([*edges, None]):
        assert low is not None
        name = f"{label(low)}-{label(high - 1)}" if high else f"{label(low)}+"
        filled[name] = sum(count for value, count in counts.items() if value >= low and (high is None or value < high))
    return filled


def _groups(groups: list[np.ndarray], hashes: np.ndarray, opened: list[str], index_dir: Path | None) -> dict[str, Any]:
    """How many groups, how many samples beyond the first of each, and the largest groups by name."""
    named = [[_name(hashes[n], opened, index_dir) for n in group[:MEMBERS]] for group in groups[:GROUPS]]
    return {
        "groups": len(groups),
        "superfluous": sum(len(group) - 1 for group in groups),
        "largest": [{"size": len(group), "ids": ids} for group, ids in zip(groups[:GROUPS], named, strict=True)],
    }


def _name(row: np.ndarray, opened: list[str], index_dir: Path | None) -> str:
    shard, storage = opened[int(row[0])], Storage()
    try:
        return sample_id(shard, index.find_or_build(storage, shard, index_dir).key(int(row[1])))
    finally:
        storage.close()
