"""Reads single samples of the sources: members by the shard's index, then picture, caption and record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intern_trainer.config.schema import Data
from intern_trainer.data import captions, decode
from intern_trainer.data.cache import Chunks
from intern_trainer.data.captions import CaptionRules
from intern_trainer.data.catalogue import Catalogue
from intern_trainer.data.dali import Encoded, encoded
from intern_trainer.data.decode import BadSample
from intern_trainer.data.decoders import TurboPicture, choose, open_picture
from intern_trainer.data.members import Members
from intern_trainer.data.order import Place, mix, permutation
from intern_trainer.data.stages import Stages
from intern_trainer.data.transforms import CentreCrop, TrainViews


@dataclass(frozen=True)
class Sample:
    """pixels: uint8 [h, w, 3], one a view. boxes: float32 [views, 4], see `Views.boxes`; None: not asked for. encoded:
    in place of the pixels where DALI is to make them.
    """

    id: str
    pixels: tuple[np.ndarray, ...]
    caption: str
    record: dict[str, Any]
    boxes: np.ndarray | None = None
    encoded: Encoded | None = None


@dataclass(frozen=True)
class Bad:
    """An unusable sample: its id, the kind that it is counted under, and what is wrong with it."""

    id: str
    kind: str
    reason: str


class Reader:
    """Random access to the samples of several sources, from several threads if need be. Made anew in every process.

    Args:
        captions: False where a set needs none (a labelled folder, say).
        other_captions: the control experiment; each sample gets the caption that the permutation gives it.
        open_indexes: shards whose indexes are kept in memory.
        chunks: where remote shards are kept while they are read; None: nowhere, they are read sample by sample.
    """

    def __init__(
        self,
        catalogues: list[Catalogue],
        data: Data,
        index_dir: Path | None,
        crop: TrainViews | CentreCrop,
        other_captions: OtherCaptions | None = None,
        open_indexes: int = 64,
        chunks: Chunks | None = None,
    ) -> None:
        self.catalogues, self.crop = catalogues, crop
        self._rules, self._max_pixels, self._decoder = CaptionRules.of(data), data.max_pixels, choose(data.decoder)
        self.stages = Stages()
        self._other_captions = other_captions
        wanted = {*decode.PICTURES, *self._rules.members}
        self._members = Members(catalogues, index_dir, wanted, open_indexes, chunks)

    def id(self, place: Place) -> str:
        catalogue = self.catalogues[place.source]
        return f"{catalogue.name}/{catalogue.stem(place.shard)}/{self._members.key(place)}"

    def read(self, place: Place, seed: int = 0) -> Sample:
        """The sample with the crop and the caption that `seed` draws; evaluation draws nothing.

        Raises:
            BadSample: it cannot be used. DataError: the shard cannot be read.
        """
        with self.stages.of("read"):
            members = self._members.read(place)
        content = decode.picture_bytes(members)
        record = captions.record(members)
        caption = self._caption(members, record, seed)
        if self._other_captions is not None:
            other = self._members.read(self._other_captions.of(place), alone=True)
            caption = self._caption(other, captions.record(other), seed)
        if isinstance(self.crop, CentreCrop):
            return Sample(self.id(place), self.crop(decode.picture(content, self._max_pixels)), caption, record)
        with self.stages.of("decode"):
            picture = open_picture(content, self._max_pixels, self._decoder)
        drawn = self.crop.draws(picture.size, seed)
        boxes = self.crop.boxes(picture.size, drawn)
        if self._decoder == "dali" and isinstance(picture, TurboPicture) and picture.complete:
            jpeg = encoded(self.id(place), content, picture.size, drawn)
            return Sample(self.id(place), (), caption, record, boxes, jpeg)
        return Sample(self.id(place), self.crop.make(picture, drawn, self.stages), caption, record, boxes)

    def announce(self, places: list[Place]) -> None:
        """These will be read soon: what is remote of them is fetched meanwhile."""
        self._members.announce(places)

    def close(self) -> None:
        self._members.close()

    def _caption(self, members: dict[str, bytes], record: dict[str, Any], seed: int) -> str:
        drawn = mix(seed, 3) if isinstance(self.crop, TrainViews) else None
        return captions.caption(members, record, self._rules, drawn)


class OtherCaptions:
    """A fixed permutation without fixed points: one cycle through all samples of a source.

    It holds one number a sample: a control experiment, not for billions.
    """

    def __init__(self, catalogues: list[Catalogue], seed: int) -> None:
        self._ends = [np.cumsum(c.counts) for c in catalogues]
        self._next = []
        for number, catalogue in enumerate(catalogues):
            cycle = permutation(catalogue.total, mix(seed, 13, number))
            after = np.empty_like(cycle)
            after[cycle] = np.roll(cycle, -1)
            self._next.append(after)

    def of(self, place: Place) -> Place:
        """Whose caption the sample at `place` gets."""
        ends = self._ends[place.source]
        flat = place.index + (int(ends[place.shard - 1]) if place.shard else 0)
        other = int(self._next[place.source][flat])
        shard = int(np.searchsorted(ends, other, side="right"))
        return Place(place.source, shard, other - (int(ends[shard - 1]) if shard else 0))


def read_or_bad(reader: Reader, place: Place, seed: int = 0) -> Sample | Bad:
    """The sample, or why it cannot be used."""
    try:
        return reader.read(place, seed)
    except BadSample as error:
        return Bad(reader.id(place), error.kind, error.reason)
