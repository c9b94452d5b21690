"""The training reader: this rank's share of every global batch, from any step on, for ever."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from intern_trainer.batch import Batch, total
from intern_trainer.config.checks import batch_plan
from intern_trainer.config.phases import Phases, Span
from intern_trainer.config.schema import Config
from intern_trainer.data import transforms
from intern_trainer.data.catalogue import Catalogue
from intern_trainer.data.dali import Dali, Encoded
from intern_trainer.data.decoders import choose, describe
from intern_trainer.data.order import Order, Place, rank_offsets
from intern_trainer.data.read_ahead import announced, plan
from intern_trainer.data.reader import Bad, OtherCaptions, Reader, Sample, read_or_bad
from intern_trainer.data.sources import catalogues
from intern_trainer.data.views import Views
from intern_trainer.data.workers import Feed
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks

log = logging.getLogger(__name__)
REMOTE_READS = 8
"""Samples that one worker asks a remote source for at once."""
SUBSTITUTES = 32
"""So many tries to fill the slot of a bad sample; a source where all fail is broken as a whole."""


@dataclass
class _Part:
    """What one worker made of its rows of a micro-batch, by name: images uint8 [b, h, w, 3], texts and boxes
    [b, ...]; and the seconds that it took, by stage. encoded: one a row; rows that are for DALI to make have no images.
    """

    images: dict[str, Tensor]
    encoded: list[Encoded | None]
    texts: dict[str, Tensor]
    ids: list[str]
    captions: list[str]
    bad: list[Bad]
    seconds: dict[str, float]

    def pin_memory(self) -> _Part:
        return self._through(Tensor.pin_memory)

    def owned(self) -> _Part:
        """Not in the memory shared with the loader processes: that is scarce, and takes an open file a tensor."""
        return self._through(lambda tensor: tensor.clone() if tensor.is_shared() else tensor)

    def _through(self, made: Callable[[Tensor], Tensor]) -> _Part:
        self.images = {name: made(tensor) for name, tensor in self.images.items()}
        self.texts = {name: made(tensor) for name, tensor in self.texts.items()}
        return self


class TrainData:
    """Made by `build_train_data`.

    Attributes:
        fingerprint: what the order of samples depends on (JSON-able). A run goes on only with the same.
        decoder: what decodes the pictures, with versions.
    """

    def __init__(self, config: Config, ranks: Ranks, views: Views, sources: list[Catalogue]) -> None:
        data, train = config.data, config.train
        self._config, self._ranks, self._views, self._sources = config, ranks, views, sources
        self._phases = Phases(config)
        self._slots = {span: _slots(config, span, ranks) for span in self._phases.spans}
        self._workers = min(data.workers, *(len(slots[0]) for slots in self._slots.values()))
        counts, weights = zip(*((source.counts, source.weight) for source in sources), strict=True)
        self._order = Order(counts, weights, train.seed, data.lanes, data.shuffle_window)
        self._reads = plan(sources, data, self._lanes_of_workers(), ranks)
        self._others = OtherCaptions(sources, train.seed) if data.shuffle_captions else None
        self._feed: Feed | None = None
        self._read, self._bad_ids = 0, set[str]()
        self._bad: Counter[str] = Counter()
        self._bad_events = 0
        self.decoder, self._dali = describe(choose(data.decoder)), Dali()
        self._found_late: DataError | None = None
        self.fingerprint: dict[str, Any] = {
            "sources": [source.fingerprint() for source in sources],
            "seed": train.seed,
            "lanes": data.lanes,
            "shuffle_window": data.shuffle_window,
            "global_batch": _batches_by_step(self._phases),
            "shuffle_captions": data.shuffle_captions,
        }

    def report(self) -> dict[str, Any]:
        """This rank's samples read so far, and the unusable ones among them by kind (each counted once)."""
        return {"read": self._read, "bad": len(self._bad_ids), "bad_by_kind": dict(self._bad)}

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        """From optimizer step `step` on: this rank's micro-batches of each step. Costs the same at any step.

        The samples of the steps `left_out` are passed over, all others stay in their places. A second call ends the
        first one's iteration.

        Raises:
            DataError: more bad samples than `data.max_bad_fraction`, or a source that cannot be read any more.
        """
        self.close()
        self._found_late, self._left_out = None, frozenset(left_out)
        workers, pin = self._workers, self._ranks.device.type == "cuda"
        self._order.warm(self._phases.first_sample(step))  # what is made here, all workers share
        self._feed = feed = Feed(partial(self._parts, step), workers, self._config.data.prefetch, pin_memory=pin)
        for number in self._steps(step):
            if self._feed is not feed:
                return
            span = self._phases.at(number)
            yield [self._batch([next(feed).owned() for _ in range(max(workers, 1))], span) for _ in self._slots[span]]
            if self._found_late:
                raise self._found_late

    def close(self) -> None:
        """End the loader processes."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _parts(self, step: int, worker: int, workers: int) -> Iterator[_Part]:
        """In a loader process: its rows of every micro-batch.

        Rows are cut by lane, so that each worker, too, reads a few lanes in sequence.
        """
        config, views, reads = self._config, self._views, self._reads
        crops = {
            span: transforms.TrainViews(span.image_size, config.data.augment, views.images, views.overlap)
            for span in self._phases.spans
        }
        crop = crops[self._phases.at(step)]
        reader = Reader(
            self._sources, config.data, config.data.index_dir, crop, self._others, reads.shards, reads.chunks()
        )
        remote = any(source.is_remote for source in self._sources)
        # a remote read waits far longer than it computes
        with closing(reader), ThreadPoolExecutor(REMOTE_READS if remote else 1) as pool:
            apply = pool.map if remote else map
            rows = ((span, rows, [self._order.at(p) for p in rows]) for span, rows in self._rows(step, worker, workers))
            for span, positions, places in announced(
                rows, lambda row: reader.announce(row[2]), reads.ahead, lambda row: len(row[2])
            ):
                reader.crop = crops[span]
                yield self._part(reader, positions, places, apply)

    def _rows(self, step: int, worker: int, workers: int) -> Iterator[tuple[Span, list[int]]]:
        """Positions of a worker's rows, a list a micro-batch, from `step` on for ever."""
        for number in self._steps(step):
            span, first = self._phases.at(number), self._phases.first_sample(number)
            for slots in self._slots[span]:
                yield span, [first + int(slot) for slot in _share(slots, worker, workers)]

    def _steps(self, step: int) -> Iterator[int]:
        return (number for number in count(step) if number not in self._left_out)

    def _lanes_of_workers(self) -> list[int]:
        """How many lanes each worker serves, of all ranks so that they plan alike, in the phase where they are most."""
        workers, lanes, world = max(self._workers, 1), self._config.data.lanes, self._ranks.world_size
        most = [0] * (world * workers)
        for span in self._phases.spans:
            accumulation = batch_plan(self._config, world, span).accumulation
            by_rank = [s.reshape(world, -1) for s in rank_offsets(span.global_batch, lanes, accumulation, 1, 0)]
            for number in range(len(most)):
                rank, worker = divmod(number, workers)
                rows = np.concatenate([_share(slots[rank], worker, workers) for slots in by_rank])
                most[number] = max(most[number], len(np.unique(rows % lanes)))
        return most

    def _part(self, reader: Reader, positions: list[int], places: list[Place], apply: Callable[..., Iterable]) -> _Part:
        bad: list[Bad] = []
        order = self._order
        seeds = [order.augmentation_seed(position) for position in positions]
        with reader.stages.concurrent():
            found = apply(partial(read_or_bad, reader), places, seeds)
            samples = [
                one if isinstance(one, Sample) else _in_place_of(one, reader, order, position, bad)
                for one, position in zip(found, positions, strict=True)
            ]
        captions = [sample.caption for sample in samples]
        with reader.stages.of("collate"):
            pixels = zip(*(sample.pixels for sample in samples if sample.encoded is None), strict=True)
            # straight into the memory that it reaches the training process by
            images = dict(zip(self._views.image_names(), map(default_collate, pixels), strict=False))
            rows = self._views.texts(captions, seeds) if self._views.texts else {}
            if self._views.boxes:
                rows["boxes"] = default_collate([sample.boxes for sample in samples])
        late, ids = [sample.encoded for sample in samples], [sample.id for sample in samples]
        return _Part(images, late, rows, ids, captions, bad, reader.stages.take())

    def _batch(self, parts: list[_Part], span: Span) -> Batch:
        ids = [id for part in parts for id in part.ids]
        self._judge(len(ids), [bad for part in parts for bad in part.bad])
        captions = [caption for part in parts for caption in part.captions]
        seconds = total(part.seconds for part in parts)
        texts = {name: torch.cat([part.texts[name] for part in parts]) for name in parts[0].texts}
        pictures = [replace(part, texts={}) for part in parts]
        return Batch(texts, ids, {"caption": captions}, seconds, partial(self._images, pictures, span))

    def _images(self, parts: list[_Part], span: Span, device: torch.device) -> dict[str, Tensor]:
        """Normalised, on the device; DALI's rows are put among the workers'."""
        data, names = self._config.data, self._views.image_names()
        images = {name: [part.images[name] for part in parts if part.images] for name in names}
        waiting = [encoded for part in parts for encoded in part.encoded]
        late = [row for row, encoded in enumerate(waiting) if encoded]
        if late:
            made = self._late([each for each in waiting if each], span.image_size, len(waiting), device)
            for name, view in zip(names, made, strict=True):
                images[name].append(view)
        found = {name: transforms.normalise(views, data.mean, data.std, device) for name, views in images.items()}
        if 0 < len(late) < len(waiting):
            rows = [row for row, encoded in enumerate(waiting) if not encoded] + late
            back = torch.from_numpy(np.argsort(rows)).to(device)
            found = {name: image[back].contiguous(memory_format=torch.channels_last) for name, image in found.items()}
        return found

    def _late(self, waiting: list[Encoded], side: int, batch: int, device: torch.device) -> list[Tensor]:
        """DALI's views. Where a picture is broken they are black, and `batches` raises before it gives the next step:
        raised in the midst of a step, the error would leave the other ranks waiting in a collective.
        """
        views = len(self._views.image_names())
        try:
            return self._dali.views(side, views, batch, device)(waiting)
        except DataError as error:
            log.warning("%s", error.found)
            self._found_late = error
            return [torch.zeros(len(waiting), side, side, 3, dtype=torch.uint8, device=device)] * views

    def _judge(self, read: int, bad: list[Bad]) -> None:
        """Count and name; stop past the limit. A single bad sample is let pass, however often it comes round."""
        self._read += read
        for one in bad:
            self._bad_events += 1
            if one.id not in self._bad_ids:
                self._bad_ids.add(one.id)
                self._bad[one.kind] += 1
                log.warning("bad sample %s: %s; skipped, %d so far", one.id, one.reason, len(self._bad_ids))
        if len(self._bad_ids) < 2 or self._bad_events <= self._limit():
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._bad.most_common())
        raise DataError(
            f"{len(self._bad_ids)} bad samples among {self._read} read on rank {self._ranks.rank}: {kinds}",
            f"at most data.max_bad_fraction = {self._config.data.max_bad_fraction:g} of the samples may be unusable",
            "repair the shards (the log names each bad sample), or raise data.max_bad_fraction",
        )

    def _limit(self) -> float:
        """The allowed number of bad samples among those that this rank read.

        One of many ranks sees more than its share by chance. The margin is what the unluckiest of them is expected to
        see: nothing for a single rank, and small against the mean in the long run.
        """
        mean = self._config.data.max_bad_fraction * self._read
        return mean + math.sqrt(2 * mean * math.log(self._ranks.world_size))


def build_train_data(config: Config, ranks: Ranks, views: Views) -> TrainData:
    """Open the training sources. Collective.

    Args:
        views: what the task wants of each sample.

    Raises:
        DataError: shards that cannot be used, or fewer samples than one global batch takes. On every rank alike.
    """
    data, batch = config.data, max(span.global_batch for span in Phases(config).spans)
    sources = catalogues(list(data.train), data.index_dir, ranks)
    weights = sum(source.weight for source in sources)
    for source in sources:
        needed = math.ceil(batch * source.weight / weights)
        if source.total < needed:
            raise DataError(
                f"data.train {source.name} holds {source.total} samples in {len(source.shards)} shard(s), "
                f"one global batch takes {needed} of them",
                "an epoch holds at least one global batch",
                f"{_smaller_batch(batch * source.total // needed, data.lanes)}, or more data",
            )
    return TrainData(config, ranks, views, sources)


def _slots(config: Config, span: Span, ranks: Ranks) -> list[np.ndarray]:
    """This rank's places in every global batch of a phase, one array a micro-batch."""
    accumulation = batch_plan(config, ranks.world_size, span).accumulation
    return rank_offsets(span.global_batch, config.data.lanes, accumulation, ranks.world_size, ranks.rank)


def _batches_by_step(phases: Phases) -> int | list[list[int]]:
    """The global batch, or where it changes: [first step, batch] of each stretch. Step and position go by it."""
    changes: list[list[int]] = []
    for span in phases.spans:
        if not changes or changes[-1][1] != span.global_batch:
            changes.append([span.first_step, span.global_batch])
    return changes if len(changes) > 1 else changes[0][1]


def _share(slots: np.ndarray, worker: int, workers: int) -> np.ndarray:
    return slots[len(slots) * worker // workers : len(slots) * (worker + 1) // workers]


def _smaller_batch(at_most: int, lanes: int) -> str:
    """Settings for a global batch of `at_most` samples or a little fewer, which the lanes divide."""
    if at_most >= lanes:
        return f"train.global_batch={at_most // lanes * lanes}"
    return f"train.global_batch={max(1, at_most)} data.lanes={max(1, at_most)}"


def _in_place_of(unusable: Bad, reader: Reader, order: Order, position: int, bad: list[Bad]) -> Sample:
    """The next good sample that the order names for the slot of a bad one, the same on any rank and worker."""
    bad.append(unusable)  # substitutes that are bad too are counted when their own turn comes
    for attempt in range(1, SUBSTITUTES + 1):
        other = read_or_bad(reader, order.substitute(position, attempt), order.augmentation_seed(position))
        if isinstance(other, Sample):
            return other
    raise DataError(
        f"{unusable.id}: {unusable.reason}; the {SUBSTITUTES} samples tried in its place are bad too",
        "most samples of a source are usable",
        "look at the shards: data.caption_keys may name members that they do not have",
    )
