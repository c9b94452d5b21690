"""The data of a pipeline: one rank of a chain reads, and tells the others what they need of it.

Pictures are read where they enter the model; the other stages get ids, captions and whatever else is small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, Protocol

from intern_trainer.batch import Batch
from intern_trainer.errors import TrainingError, UserError
from intern_trainer.ranks import Ranks


class Readable(Protocol):
    """What a run asks of its training data."""

    fingerprint: dict[str, Any]
    decoder: str

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]: ...
    def report(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


def share(read: Callable[[], Readable], pipe: Ranks, reader: int) -> Readable:
    """The data that `read` opens on rank `reader` of the chain `pipe`, for each of its ranks. Collective.

    Raises:
        UserError: what opening raises, on all ranks.
    """
    if pipe.world_size == 1:
        return read()
    data: Readable | None = None
    failure: Exception | None = None
    if pipe.rank == reader:
        try:
            data = read()
        except Exception as error:  # raised below, when the others know
            failure = error
    told = pipe.broadcast(_told(failure, pipe), reader)
    if failure is not None:
        raise failure
    if told is not None:
        raise told
    return _Reader(data, pipe, reader) if data is not None else _Listener(pipe, reader)


class _Reader:
    def __init__(self, data: Readable, pipe: Ranks, reader: int) -> None:
        self._data, self._pipe, self._reader = data, pipe, reader
        self.fingerprint, self.decoder = data.fingerprint, data.decoder
        pipe.broadcast((self.fingerprint, self.decoder), reader)

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        batches = iter(self._data.batches(step, left_out))
        while True:
            try:
                made = next(batches, None)
            except Exception as error:
                self._pipe.broadcast((None, _told(error, self._pipe)), self._reader)
                raise
            self._pipe.broadcast((made and [_small(batch) for batch in made], None), self._reader)
            if made is None:
                return
            yield made

    def report(self) -> dict[str, Any]:
        return self._data.report()

    def close(self) -> None:
        self._data.close()


class _Listener:
    def __init__(self, pipe: Ranks, reader: int) -> None:
        self._pipe, self._reader = pipe, reader
        self.fingerprint, self.decoder = pipe.broadcast(None, reader)

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        while True:
            made, error = self._pipe.broadcast(None, self._reader)
            if error is not None:
                raise error
            if made is None:
                return
            yield made

    def report(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def _small(batch: Batch) -> Batch:
    """Without pictures, which `finish` makes."""
    return replace(batch, finish=None)


def _told(error: Exception | None, pipe: Ranks) -> Exception | None:
    """What the other ranks are told; a bug keeps its stack trace on its own rank."""
    if error is None or isinstance(error, UserError):
        return error
    return TrainingError(f"stage {pipe.rank} failed while reading data: {type(error).__name__}: {error}")
