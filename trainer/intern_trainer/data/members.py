"""The bytes of samples: where they lie by the shard's index, and read ahead where the shard is remote."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from intern_trainer.data import index
from intern_trainer.data.cache import Chunks
from intern_trainer.data.catalogue import Catalogue
from intern_trainer.data.index import ShardIndex
from intern_trainer.data.kept import Kept
from intern_trainer.data.order import Place
from intern_trainer.data.read_ahead import Extent, ReadAhead
from intern_trainer.data.storage import Storage
from intern_trainer.errors import DataError


class Members:
    """Random access to the members of samples, from several threads if need be. Made anew in every process.

    Args:
        wanted: extensions; other members are not read.
        open_indexes: shards whose indexes are kept in memory.
        chunks: where remote shards are kept; None: they are read sample by sample.
    """

    def __init__(
        self,
        catalogues: list[Catalogue],
        index_dir: Path | None,
        wanted: set[str],
        open_indexes: int,
        chunks: Chunks | None,
    ) -> None:
        self._catalogues, self._index_dir, self._wanted = catalogues, index_dir, wanted
        self._storage = Storage()
        self._indexes: Kept[tuple[int, int], ShardIndex] = Kept(open_indexes)
        self._ahead = ReadAhead(self._storage, chunks) if chunks is not None else None

    def key(self, place: Place) -> str:
        """The sample's name within its shard."""
        return self._index(place).key(place.index)

    def read(self, place: Place, alone: bool = False) -> dict[str, bytes]:
        """The wanted members by extension, by one read from the first to the last of them.

        Args:
            alone: its neighbours will not be asked for; no chunk is fetched for it.

        Raises:
            DataError: the shard cannot be read, or changed since its catalogue was made.
        """
        members = self._at(place)
        start, end = _hull(members)
        source = self._catalogues[place.source]
        if self._ahead is not None and source.is_remote and not alone:
            content = self._ahead.read(place, self._extent(place))
        else:
            content = self._storage.read(source.shards[place.shard], start, end - start)
        return {e: content[offset - start : offset - start + size] for e, (offset, size) in members.items()}

    def announce(self, places: list[Place]) -> None:
        """These will be asked for; fetch them meanwhile."""
        if self._ahead is None:
            return
        for place in places:
            if self._catalogues[place.source].is_remote:
                self._ahead.announce(place, partial(self._extent, place))

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._storage.close()
        self._indexes.clear()

    def _extent(self, place: Place) -> Extent:
        found, (start, end) = self._index(place), _hull(self._at(place))
        return Extent(self._catalogues[place.source].shards[place.shard], found.stamp, start, end, found.end)

    def _at(self, place: Place) -> dict[str, tuple[int, int]]:
        return {e: at for e, at in self._index(place).members(place.index).items() if e in self._wanted}

    def _index(self, place: Place) -> ShardIndex:
        return self._indexes.get((place.source, place.shard), partial(self._open, place.source, place.shard))

    def _open(self, source: int, shard: int) -> ShardIndex:
        catalogue = self._catalogues[source]
        location = catalogue.shards[shard]
        found = index.find_or_build(self._storage, location, self._index_dir)
        if len(found) != catalogue.counts[shard] or found.end != catalogue.sizes[shard]:
            raise DataError(
                f"{location} holds {len(found)} samples in {found.end} bytes; when the run began, or its source's "
                f"catalogue was made, it held {catalogue.counts[shard]} in {catalogue.sizes[shard]}",
                "the order of samples is made of the shards as they are counted",
                "put the shard back; or make the catalogue again with `intern-trainer data index`, start again, and "
                "add --new-order",
            )
        return found


def _hull(members: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """From the first to the last of them; (0, 0) of none."""
    starts = [offset for offset, _ in members.values()]
    return min(starts, default=0), max((offset + size for offset, size in members.values()), default=0)
