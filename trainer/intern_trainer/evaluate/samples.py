"""Test pictures and what the model says of them, for the report."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from intern_trainer import data
from intern_trainer.config.schema import Config, Retrieval
from intern_trainer.evaluate.features import gather_rows, in_lockstep, inference
from intern_trainer.evaluate.text import blank_image, blank_text, tokenize
from intern_trainer.ranks import Ranks


def sample_captions(
    forward: Any, entry: Retrieval, config: Config, ranks: Ranks, pictures: int = 24, captions: int = 2048, top: int = 3
) -> dict[str, Any]:
    """The first `pictures` of a retrieval set with the captions that the model likes best. Collective; the same on
    every rank.

    The choice is among the captions of (about) the first `captions` pairs; a confidence is the softmax over all of
    them of cosine times logit scale.

    Returns:
        JSON-able `{"candidates": n, "pictures": [{"id", "image" (data: address), "caption", "top": [[caption,
        confidence], ...]}, ...]}`
    """
    share = -(-pictures // ranks.world_size)
    mine: dict[str, list[Any]] = {"id": [], "image": [], "caption": []}
    images, texts, scale = [], [], torch.ones(1)
    with inference(forward):
        for batch in in_lockstep(
            _first(data.pairs(entry.data, config, ranks, entry.language), -(-captions // ranks.world_size)), ranks
        ):
            if batch is None:
                forward(image=blank_image(config, ranks), text=blank_text(config, ranks))
                continue
            tokens = tokenize(batch.extras["caption"], config).to(ranks.device)
            out = forward(image=batch.tensors["image"].to(ranks.device), text=tokens)
            wanted = max(0, share - len(mine["id"]))
            mine["id"] += batch.ids[:wanted]
            mine["image"] += [_data_address(picture, config) for picture in batch.tensors["image"][:wanted]]
            mine["caption"] += batch.extras["caption"]
            images.append(out.image_features[:wanted].float())
            texts.append(out.text_features.float())
            scale = out.logit_scale.float()
    empty = torch.zeros(0, config.model.embed_dim, device=ranks.device)
    gallery = gather_rows(torch.cat([empty, *texts]), ranks)
    everyone = ranks.gather(mine)
    all_captions = [caption for theirs in everyone for caption in theirs["caption"]]
    confidence = (torch.cat([empty, *images]) @ gallery.T * scale.to(ranks.device)).softmax(dim=1)
    best = confidence.topk(min(top, len(all_captions)), dim=1)
    mine["top"] = [
        [[all_captions[i], p] for i, p in zip(row, values, strict=True)]
        for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    rows = [
        {"id": i, "image": image, "caption": caption, "top": top_captions}
        for theirs in ranks.gather(mine)
        for i, image, caption, top_captions in zip(
            theirs["id"], theirs["image"], theirs["caption"], theirs["top"], strict=False
        )
    ]
    return {"candidates": len(all_captions), "pictures": rows[:pictures]}


def _first(batches: Any, samples: int) -> Any:
    """Batches until `samples` have come."""
    for batch in batches:
        yield batch
        samples -= len(batch)
        if samples <= 0:
            return


def _data_address(picture: Tensor, config: Config) -> str:
    """A normalised picture [3, h, w] as a `data:` address of a JPEG."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.data.mean, config.data.std))
    pixels = ((picture.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
