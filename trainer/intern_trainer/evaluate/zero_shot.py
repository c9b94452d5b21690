"""Zero-shot classification: the class whose prompts lie nearest to the picture (CLIP, arXiv 2103.00020, section
3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intern_trainer import data
from intern_trainer.config.schema import Config, Source, ZeroShot
from intern_trainer.data import EvalPairs, embedded
from intern_trainer.errors import DataError
from intern_trainer.evaluate.features import batches_in_lockstep, gather_rows, in_lockstep, sum_over_ranks
from intern_trainer.evaluate.metrics import hits, retrieval_ranks
from intern_trainer.evaluate.text import blank_image, prompts, tokenize
from intern_trainer.ranks import Ranks

KS = (1, 5)


def evaluate_zero_shot(forward: Any, entry: ZeroShot, config: Config, ranks: Ranks) -> dict[str, float]:
    """`top1`, `top5` over all pictures of `entry.data`, `mean_per_class` (the mean over classes of the share of their
    pictures that top 1 gets right),
    `count` of pictures and number of `classes`."""
    pictures, classes = labelled_pictures(entry, config, ranks)
    names = [class_prompt(name, entry) for name in classes]
    heads_ce = class_features(forward, names, entry.templates, config, ranks)
    index = {name: number for number, name in enumerate(classes)}
    # pictures of each class, and those that top 1 gets right
    per_class = torch.zeros(2, len(classes), dtype=torch.int64, device=ranks.device)
    found = torch.zeros(len(KS), dtype=torch.int64, device=ranks.device)
    for batch in batches_in_lockstep(pictures, ranks):
        if batch is None:
            forward(image=blank_image(config, ranks))
            continue
        features = forward(image=batch.tensors["image"].to(ranks.device)).image_features.float()
        labels = torch.tensor([index[name] for name in batch.extras["category"]], device=ranks.device)
        places = retrieval_ranks(features, heads_ce, labels)
        found += hits(places, KS)
        per_class[0] += torch.bincount(labels, minlength=len(classes))
        per_class[1] += torch.bincount(labels[places == 1], minlength=len(classes))
    found, (seen, right) = sum_over_ranks(found, ranks), sum_over_ranks(per_class, ranks)
    count = int(seen.sum())
    if count == 0:
        raise DataError(
            f"{entry.data} holds no pictures", "an evaluation needs some", f"check evaluate.*.zero_shot {entry.name}"
        )
    present = seen > 0
    return {
        **{f"{entry.name}/top{k}": n / count for k, n in zip(KS, found.tolist(), strict=True)},
        f"{entry.name}/mean_per_class": float((right[present] / seen[present]).mean()),
        f"{entry.name}/count": float(count),
        f"{entry.name}/classes": float(len(classes)),
    }


def labelled_pictures(entry: ZeroShot, config: Config, ranks: Ranks) -> tuple[EvalPairs, list[str]]:
    """The reader of the set (batches of this rank's pictures with extras["category"]) and all its class names."""
    if entry.data.startswith("embedded:"):
        source = Source(location=[entry.data])
        return data.pairs([source], config, ranks), embedded.categories()
    folder = data.image_folder(entry.data, config, ranks)
    return folder, folder.classes or []


def class_prompt(name: str, entry: ZeroShot) -> str:
    """What a class is called in its prompts: folder names have underscores for spaces, embedded categories a word of
    their own."""
    if entry.data.startswith("embedded:"):
        return embedded.PROMPTS.get(name, name)
    return name.replace("_", " ")


def class_features(forward: Any, names: Sequence[str], templates: str, config: Config, ranks: Ranks) -> Tensor:
    """Unit-norm mean of the prompts' features of each class: [classes, e]. Ranks share the classes among them."""
    mine, size = names[ranks.rank :: ranks.world_size], config.evaluate.batch
    features = []
    for name in in_lockstep(mine, ranks):
        # every class has as many prompts, so that all ranks go through the tower equally often
        tokens = tokenize(prompts(name or "nothing", templates), config).to(ranks.device)
        found_pe = torch.cat([forward(text=part).text_features.float() for part in tokens.split(size)])
        if name is not None:
            features.append(F.normalize(found_pe.mean(dim=0), dim=0))
    stacked = torch.stack(features) if features else torch.zeros(0, config.model.embed_dim, device=ranks.device)
    gathered = gather_rows(stacked, ranks)
    order = [number for rank in range(ranks.world_size) for number in range(rank, len(names), ranks.world_size)]
    heads = torch.empty_like(gathered)
    heads[torch.tensor(order, device=ranks.device)] = gathered
    return heads
