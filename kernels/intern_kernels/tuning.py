"""Which of a few configurations a kernel runs with: the one that its rule gives, or, where tuning is asked for, the
fastest one on this GPU.

    config = pick("scale_residual_norm_forward", (c, str(x.dtype)), default, lambda: space(c))

Tuning happens in use: the first calls take the space's configurations in turn and are timed where they stand, so that
nothing is run twice and each meets the caches of a real step. What wins is kept in a file for this GPU and this Triton,
and a later run begins with it. Ranks tune each for itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from intern_kernels.launch import Config

TIMED = 3
"""Calls of each configuration that are timed, after one that compiles it."""
Key = tuple[int | str, ...]
Chooser = Callable[[str, Config, Sequence[Config]], Config]


@dataclass
class _Trials:
    """The configurations of one kernel and key, while it is open which is fastest."""

    space: list[Config]
    calls: int = 0
    events: dict[int, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = field(default_factory=dict)

    def next(self) -> Config | None:
        """The configuration whose turn it is; None once each had its turns."""
        turn, index = divmod(self.calls, len(self.space))
        if turn > TIMED:
            return None
        self.calls += 1
        return replace(self.space[index], around=lambda run: self._time(index, run)) if turn else self.space[index]

    def _time(self, index: int, run: Callable[[], None]) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        self.events.setdefault(index, []).append((start, end))

    def best(self) -> Config | None:
        """The fastest by the median of its times; None where no launch was timed."""
        torch.cuda.synchronize()
        times = {index: median(s.elapsed_time(e) for s, e in pairs) for index, pairs in self.events.items()}
        return self.space[min(times, key=times.__getitem__)] if times else None


@dataclass
class _State:
    file: Path | None = None
    """What is known, and is to be learnt; None: no tuning."""
    known: dict[str, Config] = field(default_factory=dict)
    trials: dict[str, _Trials] = field(default_factory=dict)
    choose: Chooser | None = None


_state = _State()


def configure(autotune: bool, folder: Path | None = None) -> None:
    """Whether `pick` looks for the fastest configuration. Without a GPU it never does.

    Args:
        folder: where results are kept; None: `intern_kernels` in the user's cache folder.
    """
    _state.file, _state.known, _state.trials = None, {}, {}
    if autotune and torch.cuda.is_available():
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        device = torch.cuda.get_device_name().replace(" ", "_").replace("/", "_")
        _state.file = (folder or cache / "intern_kernels") / f"{device}-triton_{version('triton')}.json"
        _state.known = _read(_state.file)


def pick(kernel: str, key: Key, default: Config, space: Callable[[], Sequence[Config]]) -> Config:
    """The configuration that `kernel` is to be launched with.

    Args:
        key: what the choice depends on: shapes and dtype.
        default: what the kernel's own rule gives; taken as it is unless tuning is on.
        space: gives the configurations worth trying, a few.
    """
    if _state.choose is not None:
        return _state.choose(kernel, default, space())
    if _state.file is None or torch.cuda.is_current_stream_capturing():
        return default
    name = ":".join(map(str, (kernel, *key)))
    if name not in _state.trials:
        _state.trials[name] = _Trials(list(space()) or [default])
    trials = _state.trials[name]
    known = _state.known.get(name)
    if known in trials.space:  # a file of other spaces may name what is no more
        return known
    candidate = trials.next()
    if candidate is None:
        candidate = _state.known[name] = trials.best() or default
        trials.space = [candidate]
        _write(_state.file, _state.known)
    return candidate


@contextmanager
def choosing(choose: Chooser) -> Iterator[None]:
    """Inside, `choose(kernel, default, space)` says what `pick` gives: to build every configuration, or to try one."""
    before, _state.choose = _state.choose, choose
    try:
        yield
    finally:
        _state.choose = before


def _read(file: Path) -> dict[str, Config]:
    """What earlier runs found; nothing where the file cannot be read: then it is found once more."""
    try:
        return {name: Config(**entry) for name, entry in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(file: Path, known: dict[str, Config]) -> None:
    """Add to the file, whole or not at all: other ranks write it too. A folder that cannot be written keeps nothing."""
    entries = {name: _entry(config) for name, config in {**_read(file), **known}.items()}
    beside = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        beside.replace(file)
    except OSError:
        with suppress(OSError):
            beside.unlink()


def _entry(config: Config) -> dict[str, Any]:
    return {
        "constants": dict(config.constants),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
