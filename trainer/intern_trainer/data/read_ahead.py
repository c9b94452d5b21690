"""Remote shards are read in large pieces, before their samples are asked for.

The order of samples (`order.py`) draws a lane's samples from one window, a stretch of neighbours in one or a few
shards, before it goes on to the next. So a shard is cut into chunks, which are fetched whole by several threads as soon
as the first sample in them is announced, and kept (`cache.py`) until their window is done: reads over the network are
long and in sequence, and each byte is read once, whatever the shuffling.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from intern_trainer.config.schema import Data
from intern_trainer.data.cache import Chunks, Fetch, FolderChunks, MemoryChunks
from intern_trainer.data.catalogue import Catalogue
from intern_trainer.data.storage import Storage
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks, local_ranks

T = TypeVar("T")
log = logging.getLogger(__name__)
CHUNK = 8 << 20
"""Bytes of one read. At 50 ms to the first byte and 100 MB/s a connection, more gains little."""
THREADS = 8
"""Chunks that one worker fetches at once."""


@dataclass(frozen=True)
class Extent:
    """Bytes `start` to `end` of a remote shard, whose `stamp` changes with its content, and whose last member ends at
    `shard_end`.
    """

    location: str
    stamp: str
    start: int
    end: int
    shard_end: int


class ReadAhead:
    """Reads pieces of remote shards by chunks; safe to call from several threads. Made anew in every process."""

    def __init__(self, storage: Storage, chunks: Chunks) -> None:
        self._storage, self._chunks = storage, chunks
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")
        self._announced: defaultdict[Hashable, deque[Future[None]]] = defaultdict(deque)
        """By key, the oldest first: a sample's next epoch may be announced before this one's read."""
        self._lock = threading.Lock()

    def read(self, key: Hashable, extent: Extent) -> bytes:
        """What was announced as `key`, or was not.

        Raises:
            DataError: the shard cannot be read.
        """
        announced = self._oldest(key)
        prepared = announced is not None and not announced.cancel()  # what was not begun is not needed any more
        pieces = []
        for name, first, fetch in self._cut(extent):
            start, end = max(extent.start, first), min(extent.end, first + CHUNK)
            pieces.append(self._chunks.read(name, start - first, end - start, fetch, prepared))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def announce(self, key: Hashable, extent: Callable[[], Extent]) -> None:
        """Fetch what `read` will be asked for; `extent` is called in another thread: it may have to read an index."""
        with self._lock:
            self._announced[key].append(self._pool.submit(self._prepare, extent))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _oldest(self, key: Hashable) -> Future[None] | None:
        with self._lock:
            if key not in self._announced:
                return None
            waiting = self._announced[key]
            oldest = waiting.popleft()
            if not waiting:
                del self._announced[key]
            return oldest

    def _prepare(self, extent: Callable[[], Extent]) -> None:
        # what goes wrong here goes wrong again when the sample is read, and is told then
        for name, _, fetch in self._cut(extent()):
            self._chunks.prepare(name, fetch)

    def _cut(self, extent: Extent) -> Iterator[tuple[str, int, Fetch]]:
        """The chunks that it lies in: name, first byte, what fetches it."""
        shard = hashlib.sha256(f"{extent.location}|{extent.stamp}".encode()).hexdigest()[:32]
        for number in range(extent.start // CHUNK, -(-extent.end // CHUNK)):
            first = number * CHUNK
            size = min(CHUNK, extent.shard_end - first)
            yield f"{shard}-{CHUNK}-{number}", first, partial(self._storage.read, extent.location, first, size)


@dataclass(frozen=True)
class Plan:
    """What one worker has at hand at a time.

    Attributes:
        shards: so many are open. bytes: of remote shards, in memory or in `folder`; 0: samples are read one by one.
        ahead: samples that are announced before they are read.
    """

    shards: int
    bytes: int = 0
    folder: Path | None = None
    folder_bytes: int = 0
    ahead: int = 0

    def chunks(self) -> Chunks | None:
        """Where this process keeps chunks; None: nowhere."""
        if self.folder is not None and self.bytes:
            return FolderChunks(self.folder, self.folder_bytes)
        return MemoryChunks(self.bytes) if self.bytes else None


def plan(sources: list[Catalogue], data: Data, lanes_of_workers: list[int], ranks: Ranks) -> Plan:
    """The same for all workers, that of all ranks together serve so many lanes each.

    Raises:
        DataError: on every rank alike: the windows of a node's workers do not fit into `data.cache_gb`.
    """
    lanes, workers = max(lanes_of_workers), len(lanes_of_workers) // ranks.world_size
    shards = sum(
        min(_shards_of_two_windows(source, data.shuffle_window) * lanes, len(source.shards)) for source in sources
    )
    remote = [source for source in sources if source.is_remote]
    if not remote:
        return Plan(shards)
    whole = sum(int(source.sizes.sum()) for source in remote)
    needed = min(sum(_bytes_of_two_windows(source, data.shuffle_window) * lanes for source in remote), whole)
    ahead = lanes * data.shuffle_window
    what = f"two windows of {data.shuffle_window} samples for each of {lanes} lanes take {needed / 1e9:.2f} GB a worker"
    if data.cache_dir is not None:
        limit, at_once = int(data.cache_gb * 1e9), 1.2 * min(needed * workers * local_ranks(), whole)
        if at_once > limit:
            raise DataError(
                f"{what}, with some room {at_once / 1e9:.1f} GB on a node; data.cache_gb is {data.cache_gb:g}",
                "what is being read has room in data.cache_dir, else it is fetched again and again",
                f"data.cache_gb={math.ceil(at_once / 1e9)}, or a smaller data.shuffle_window",
            )
        return Plan(shards, needed, data.cache_dir, limit, ahead)
    if needed > data.read_ahead_mb << 20:
        if ranks.is_main:
            log.warning(
                "remote data is read sample by sample: %s, data.read_ahead_mb is %d; give a data.cache_dir on a "
                "local disk, or a smaller data.shuffle_window, or data.read_ahead_mb=%d",
                what,
                data.read_ahead_mb,
                -(-needed >> 20),
            )
        return Plan(shards)
    readers = sum(lanes_of_workers) / data.lanes
    if readers > 1.1 and ranks.is_main:
        log.warning(
            "each lane is read by %.1f workers on average, and so its data as often: best data.lanes is a multiple of "
            "ranks x data.workers = %d; or give a data.cache_dir",
            readers,
            ranks.world_size * workers,
        )
    return Plan(shards, needed, ahead=ahead)


def announced(rows: Iterator[T], announce: Callable[[T], None], ahead: int, samples: Callable[[T], int]) -> Iterator[T]:
    """The rows, each announced when its samples (`samples` counts them) are `ahead` away. That distance grows from
    nothing on, by one row with each row given: the first row does not wait for all the announcements.
    """
    waiting, held, fresh = deque[T](), 0, 0
    for row in rows:
        announce(row)
        waiting.append(row)
        held, fresh = held + samples(row), fresh + 1
        while held > ahead or fresh == 2:
            held, fresh = held - samples(waiting[0]), 0
            yield waiting.popleft()
    yield from waiting


def _shards_of_two_windows(source: Catalogue, window: int) -> int:
    return 2 * (math.ceil(window * len(source.shards) / source.total) + 1)


def _bytes_of_two_windows(source: Catalogue, window: int) -> int:
    mean = int(source.sizes.sum()) / source.total
    return 2 * (math.ceil(window * mean) + CHUNK)


def sequential(sources: list[Catalogue]) -> Chunks | None:
    """For a reader that takes its samples one after the other."""
    return MemoryChunks(4 * CHUNK) if any(source.is_remote for source in sources) else None
