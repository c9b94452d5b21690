"""The C library's heap."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Return freed memory to the system. glibc keeps blocks of some megabytes, and a process that made many of them
    once stays as large as their sum; other C libraries have no such call and no such habit.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
