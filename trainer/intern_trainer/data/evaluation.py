"""The evaluation readers: every sample exactly once over all ranks, in a fixed order, without random draws."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intern_trainer.batch import Batch
from intern_trainer.config.schema import Config, Source
from intern_trainer.data import decode, transforms
from intern_trainer.data.decode import BadSample
from intern_trainer.data.order import Place
from intern_trainer.data.read_ahead import sequential
from intern_trainer.data.reader import Bad, Reader, Sample, read_or_bad
from intern_trainer.data.sources import catalogues
from intern_trainer.data.workers import Feed
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks

log = logging.getLogger(__name__)
Opener = Callable[[], AbstractContextManager[Callable[[int], Sample | Bad]]]
"""Opens a reader in the process that calls it, until the context ends; that gives the n-th sample of the set."""
IN_PROCESS = 1024
"""A rank with fewer samples reads them itself: starting loader processes would take longer."""


class EvalPairs:
    """This rank's share of a set; iteration yields `Batch`es with `image`, and `caption`, `category` in the extras.

    A bad sample is named, counted in `report` and left out: all ranks together give `total` minus the bad ones.

    Attributes:
        total: samples of the whole set. classes: names of the classes of a labelled folder, sorted; else None.
        report: after `agree`: {read, bad, bad_by_kind} over all ranks.
    """

    def __init__(
        self, config: Config, ranks: Ranks, total: int, open_reader: Opener, classes: list[str] | None = None
    ) -> None:
        self.total, self.classes = total, classes
        self.report: dict[str, Any] = {}
        self._bad: list[Bad] = []
        self._config, self._ranks, self._open = config, ranks, open_reader
        self._first, self._last = total * ranks.rank // ranks.world_size, total * (ranks.rank + 1) // ranks.world_size

    def __len__(self) -> int:
        """Samples of this rank."""
        return self._last - self._first

    def __iter__(self) -> Iterator[Batch]:
        """No collective: ranks may have different numbers of batches. Call `agree` afterwards, on all ranks.

        Raises:
            DataError: the set cannot be read, on this rank alone.
        """
        workers = self._config.data.workers if len(self) >= IN_PROCESS else 0
        feed, self._bad = Feed(self._parts, workers, self._config.data.prefetch), []
        try:
            for samples, pixels, unusable in feed:
                self._bad += unusable
                if samples:
                    yield self._batch(samples, pixels)
        finally:
            feed.close()

    def _parts(self, worker: int, workers: int) -> Iterator[tuple[list[Sample], torch.Tensor | None, list[Bad]]]:
        size = self._config.evaluate.batch
        with self._open() as read:
            for first in range(self._first + worker * size, self._last, workers * size):
                results = [read(number) for number in range(first, min(first + size, self._last))]
                samples = [one for one in results if isinstance(one, Sample)]
                pixels = torch.from_numpy(np.stack([one.pixels[0] for one in samples])) if samples else None
                # the pixels travel as one tensor
                slim = [Sample(one.id, (), one.caption, one.record) for one in samples]
                yield slim, pixels, [one for one in results if isinstance(one, Bad)]

    def _batch(self, samples: list[Sample], pixels: torch.Tensor) -> Batch:
        data = self._config.data
        image = transforms.normalise([pixels], data.mean, data.std, self._ranks.device)
        extras: dict[str, list] = {"caption": [one.caption for one in samples]}
        categories = [one.record.get("category") for one in samples]
        if any(category is not None for category in categories):
            extras["category"] = categories
        return Batch({"image": image}, [one.id for one in samples], extras)

    def agree(self) -> None:
        """After an iteration: name this rank's bad samples and count those of all ranks. Collective.

        Raises:
            DataError: on every rank alike: more bad samples than `data.max_bad_fraction` (at least one is let pass).
        """
        for one in self._bad:
            log.warning("bad sample %s: %s; left out of the evaluation", one.id, one.reason)
        kinds = Counter(kind for part in self._ranks.gather([one.kind for one in self._bad]) for kind in part)
        self.report = {"read": self.total, "bad": kinds.total(), "bad_by_kind": dict(kinds)}
        if kinds.total() > max(1, self._config.data.max_bad_fraction * self.total):
            found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            limit = self._config.data.max_bad_fraction
            raise DataError(
                f"{kinds.total()} bad samples among the {self.total} of an evaluation set: {found}",
                f"at most data.max_bad_fraction = {limit:g} of the samples may be unusable",
                "repair the set (the log names each bad sample), or raise data.max_bad_fraction",
            )


def pairs(sources: list[Source], config: Config, ranks: Ranks, language: str | None = None) -> EvalPairs:
    """All pairs of the sources (their weights do not count). Collective.

    Args:
        language: of the captions; None: the first of `data.languages` that a sample has.

    Raises:
        DataError: shards that cannot be used.
    """
    settings = config.data.model_copy(update={"languages": {language: 1.0}}) if language else config.data
    found = catalogues(list(sources), config.data.index_dir, ranks)
    places = [(s, shard) for s, source in enumerate(found) for shard in range(len(source.shards))]
    ends = np.cumsum([found[s].counts[shard] for s, shard in places])

    @contextmanager
    def open_reader() -> Iterator[Callable[[int], Sample | Bad]]:
        crop = transforms.CentreCrop(config.model.image_size)

        def read(number: int) -> Sample | Bad:
            at = int(np.searchsorted(ends, number, side="right"))
            source, shard = places[at]
            index = number - int(ends[at]) + int(found[source].counts[shard])
            return read_or_bad(reader, Place(source, shard, index))

        chunks = sequential(found)
        with closing(Reader(found, settings, config.data.index_dir, crop, open_indexes=4, chunks=chunks)) as reader:
            yield read

    return EvalPairs(config, ranks, int(ends[-1]), open_reader)


def image_folder(path: str | Path, config: Config, ranks: Ranks) -> EvalPairs:
    """A labelled set as torchvision's ImageFolder has it: one sub-folder of pictures a class. Collective.

    Raises:
        DataError: no such folder, no sub-folders, or a class without pictures.
    """
    root = Path(path).expanduser()
    classes, files = ranks.on_main(lambda: _list_folder(root))
    crop = transforms.CentreCrop(config.model.image_size)

    def read(number: int) -> Sample | Bad:
        file, label = files[number]
        name = f"{root.name}/{file}"
        try:
            picture = decode.picture((root / file).read_bytes(), config.data.max_pixels)
        except BadSample as error:
            return Bad(name, error.kind, error.reason)
        except OSError as error:
            return Bad(name, "picture missing", str(error))
        return Sample(name, crop(picture), classes[label], {"category": classes[label]})

    return EvalPairs(config, ranks, len(files), lambda: nullcontext(read), classes)


def _list_folder(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    fix = "give a folder with one sub-folder of pictures a class"
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "a labelled set is a folder of class folders", fix)
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{root} has no sub-folders", "each class is a sub-folder", fix)
    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower().lstrip(".") in decode.PICTURES)
        if not found:
            kinds = ", ".join(decode.PICTURES)
            raise DataError(f"class {name} of {root} has no pictures ({kinds})", "each class has at least one", fix)
        files += [(str(p.relative_to(root)), label) for p in found]
    return classes, files
