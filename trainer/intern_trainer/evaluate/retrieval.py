"""Image-text retrieval among all pairs of a set, both ways."""

from __future__ import annotations

from typing import Any

import torch

from intern_trainer import data
from intern_trainer.config.schema import Config, Retrieval
from intern_trainer.evaluate.features import batches_in_lockstep, first_row, gather_rows, sum_over_ranks
from intern_trainer.evaluate.metrics import hits, retrieval_ranks
from intern_trainer.evaluate.text import blank_image, blank_text, tokenize
from intern_trainer.ranks import Ranks

KS = (1, 5, 10)


def evaluate_retrieval(forward: Any, entry: Retrieval, config: Config, ranks: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10 from picture to caption and from caption to picture, over all pairs of `entry.data`; and their
    `count`.

    Each picture has one right caption: its own. Another picture's caption that is the same, word for word, is a tie
        and counts as wrong.
    Every rank compares its own rows with everybody's, so no rank holds more than all features and one block of scores.
    """
    images, texts = [], []
    for batch in batches_in_lockstep(data.pairs(entry.data, config, ranks, entry.language), ranks):
        if batch is None:
            forward(image=blank_image(config, ranks), text=blank_text(config, ranks))
            continue
        tokens = tokenize(batch.extras["caption"], config).to(ranks.device)
        out = forward(image=batch.tensors["image"].to(ranks.device), text=tokens)
        images.append(out.image_features.float())
        texts.append(out.text_features.float())
    empty = torch.zeros(0, config.model.embed_dim, device=ranks.device)
    image_features, text_features = torch.cat([empty, *images]), torch.cat([empty, *texts])
    start = first_row(len(image_features), ranks)
    own = torch.arange(start, start + len(image_features), device=ranks.device)
    results: dict[str, float] = {}
    for name, queries, candidates in (
        ("image_to_text", image_features, text_features),
        ("text_to_image", text_features, image_features),
    ):
        gallery = gather_rows(candidates, ranks)
        found = sum_over_ranks(hits(retrieval_ranks(queries, gallery, own), KS), ranks).tolist()
        results |= {f"{entry.name}/{name}_R@{k}": count / len(gallery) for k, count in zip(KS, found, strict=True)}
    results[f"{entry.name}/count"] = float(len(gallery))
    return results
