"""`intern-trainer data preview`: a page with some samples, as they lie in the shards and as training would see them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.filesize import decimal

from intern_trainer.config.schema import Config
from intern_trainer.data import decode
from intern_trainer.data.decode import BadSample
from intern_trainer.data.decoders import open_picture
from intern_trainer.data.order import mix, permutation
from intern_trainer.data.tools.pieces import Member, choose, every_caption, read, sample_id
from intern_trainer.data.tools.results import guarded
from intern_trainer.data.transforms import TrainViews
from intern_trainer.errors import DataError
from intern_trainer.report.page import write_page

VIEWS = 2
CAPTIONS = 5
"""Captions that are shown of a sample."""
SIDE = 240
"""Longer side of the original on the page, in pixels."""


def preview(locations: list[str], config: Config, workers: int, to: Path, count: int = 64, seed: int = 0) -> Path:
    """Write the page; gives its path. A sample that training would skip is shown with the reason.

    Raises:
        DataError: there is no usable shard. EnvironmentFault: the page cannot be written.
    """
    chosen = choose(locations, config.data, workers, count, seed)
    for error in chosen.failures.values():
        Console(stderr=True).print(f"left out: {error.found}", markup=False, soft_wrap=True)
    if not chosen.pieces:
        raise DataError(
            "none of the shards can be used", "a preview shows samples", "intern-trainer data check names why"
        )
    views = TrainViews(config.model.image_size, config.data.augment, VIEWS)
    found = [(piece.shard, member) for piece in chosen.pieces for member in read(piece, config.data)]
    samples = [_card(shard, member, config, views, mix(seed, n)) for n, (shard, member) in enumerate(found)]
    content = {
        "title": ", ".join(locations[:3]) + (" ..." if len(locations) > 3 else ""),
        "samples": [samples[n] for n in permutation(len(samples), seed).tolist()],
        "total": f"{chosen.samples:,} in {chosen.opened:,} of {chosen.shards:,} shards",
        "seed": seed,
        "views": VIEWS,
        "size": config.model.image_size,
        "augment": config.data.augment.model_dump(exclude_defaults=True),
    }
    guarded(to, lambda: write_page(to, "preview.html", content))
    return to


def _card(shard: str, member: Member, config: Config, views: TrainViews, seed: int) -> dict[str, Any]:
    card: dict[str, Any] = {"id": sample_id(shard, member.key), "images": [], "captions": [], "more": 0, "bad": ""}
    facts = [f"{extension} {decimal(size)}" for extension, size in member.sizes.items()]
    try:
        content = decode.picture_bytes(member.content)
        picture = decode.picture(content, config.data.max_pixels)
        facts.insert(0, f"{picture.width} x {picture.height}")
        original = picture.copy()
        original.thumbnail((SIDE, SIDE))
        drawn = views(open_picture(content, config.data.max_pixels), seed)
        card["images"] = [_data_address(image) for image in (original, *map(Image.fromarray, drawn))]
        by_language = every_caption(member, config.data)
        every = [(language, text) for language, texts in by_language.items() for text in texts]
        card["captions"], card["more"] = every[:CAPTIONS], len(every[CAPTIONS:])
    except BadSample as bad:
        card["bad"] = bad.reason
    return {**card, "facts": " · ".join(facts)}


def _data_address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
