"""Results of slow calls, kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Drops what was not used for the longest time. Of several threads that ask for the same, one makes it.

    Args:
        limit: of the weights of all values together.
        needed: keys that are not dropped, even beyond the limit.
    """

    def __init__(
        self, limit: int, weigh: Callable[[V], int] = lambda _: 1, needed: Callable[[K], bool] = lambda _: False
    ) -> None:
        self._limit, self._weigh, self._needed, self._weight = limit, weigh, needed, 0
        self._values: OrderedDict[K, Future[V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made if need be; what `make` raises all who wait for it get."""
        with self._lock:
            known = self._values.get(key)
            if known is not None:
                self._values.move_to_end(key)
            else:
                mine = self._values[key] = Future[V]()
        return known.result() if known is not None else self._make(key, make, mine)

    def __contains__(self, key: K) -> bool:
        """Whether the value is there or being made."""
        with self._lock:
            return key in self._values

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._weight = 0

    def _make(self, key: K, make: Callable[[], V], mine: Future[V]) -> V:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._values.pop(key, None)
            mine.set_exception(error)
            raise
        mine.set_result(value)
        with self._lock:
            self._weight += self._weigh(value)
            while self._weight > self._limit:
                oldest = next((k for k, v in self._values.items() if v.done() and not self._needed(k)), None)
                if oldest is None:
                    break
                self._weight -= self._weigh(self._values.pop(oldest).result())
        return value
