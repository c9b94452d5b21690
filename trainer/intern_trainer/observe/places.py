"""Where in its work this process is, read off the stack of its training thread.

Functions that matter carry a word (`@place("data.next")`), which costs nothing when they are called. Whoever wants to
know looks at the stack: the words on it, the collective that it waits in, and the module of the model whose code runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_words: dict[CodeType, str] = {}
_PACKAGE = str(PurePath(__file__).parents[1])
_COLLECTIVES = "torch/distributed/distributed_c10d.py"
_WAITS = {("zero/partition_parameters.py", "wait"): "all_gather"}
"""Functions of DeepSpeed 0.19.8 that wait for a collective that was begun before."""


def place(word: str) -> Callable[[Function], Function]:
    """Give a function its word."""

    def name(function: Function) -> Function:
        _words[function.__code__] = word
        return function

    return name


@dataclass(frozen=True)
class Place:
    """Where a thread is.

    Attributes:
        words: of the functions on its stack, outermost first.
        collective: that it waits in. module: of the model, whose code it runs.
    """

    words: tuple[str, ...]
    collective: str | None = None
    module: str | None = None

    def __str__(self) -> str:
        """`data.next`, `all_gather of blocks.17 (forward)`."""
        what, around = (self.collective, self.words) if self.collective else (self.words[-1], self.words[:-1])
        of = f" of {self.module}" if self.module else ""
        return f"{what}{of}" + (f" ({', '.join(around)})" if around else "")


def place_of(thread: int, names: Mapping[int, str] | None = None) -> Place:
    """Where the thread with this identifier is.

    Args:
        names: by `id`, of modules and parameters. Given, the locals of the thread's functions are looked through for
            them, which keeps those alive until the functions return: not to be done in every second.
    """
    frames = list(_frames(sys._current_frames().get(thread)))
    words = [_words[frame.f_code] for frame in reversed(frames) if frame.f_code in _words]
    collective = next((word for word in map(_collective, frames) if word), None)
    module = next((name for frame in frames for name in _named(frame, names)), None) if names else None
    return Place(tuple(words) or (_own_function(frames),), collective, module)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _collective(frame: FrameType) -> str | None:
    file, function = frame.f_code.co_filename, frame.f_code.co_name
    if file.endswith(_COLLECTIVES):
        return None if function.startswith("_") else function
    return next((word for (end, name), word in _WAITS.items() if name == function and file.endswith(end)), None)


def _named(frame: FrameType, names: Mapping[int, str]) -> Iterator[str]:
    yield from (names[id(value)] for value in frame.f_locals.values() if names.get(id(value)))


def _own_function(frames: list[FrameType]) -> str:
    ours = (frame for frame in frames if frame.f_code.co_filename.startswith(_PACKAGE))
    frame = next(ours, frames[0] if frames else None)
    return "nothing" if frame is None else frame.f_code.co_qualname
