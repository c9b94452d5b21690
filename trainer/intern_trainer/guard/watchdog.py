"""Hangs: a thread on each rank looks on, and when a step takes too long all ranks say where they are.

RUN/heartbeat/rank-N     where rank N is, as JSON, written anew by its thread every few seconds at most
RUN/heartbeat/hang       the step in which some rank noticed a hang: all others write their stacks then, too
RUN/hangs/step-S/        rank-N.txt: Python stacks of all threads; where.txt: who waits where

The thread runs while the training thread waits in a collective, which lets go of the interpreter. A rank whose own
thread cannot run (it is dead, or C code holds the interpreter) shows as one without a heartbeat, with its last place.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from intern_trainer.callbacks.base import Callback
from intern_trainer.config.guard import Guard
from intern_trainer.observe.phases import show_seconds
from intern_trainer.observe.places import Place, place_of
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder
from intern_trainer.state import State

log = logging.getLogger(__name__)

EXIT_CODE = 8
LONGEST_BEAT = 5.0
"""Seconds between two looks at most."""
PATIENCE = 5
"""Beats that others get to write their stacks."""
PAUSES = ("evaluate", "save")
"""Words of places that may take longer than a step."""


class Watchdog(Callback):
    """Inside `with`, from the start of a run to its end.

    Args:
        end: ends the process with a code, from inside the thread.
    """

    def __init__(self, settings: Guard, folder: RunFolder, ranks: Ranks, end: Callable[[int], Any] = os._exit) -> None:
        self._settings, self._folder, self._ranks, self._end = settings, folder, ranks, end
        self._beat = min(LONGEST_BEAT, settings.hang_seconds / 10)
        self._names: dict[int, str] = {}
        self._step, self._first, self._since = 0, True, time.monotonic()
        self._pause: str | None = None
        self._beats, self._reported = 0, -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Collective."""
        self._ranks.on_main(self._clear)
        self._watched, self._since = threading.get_ident(), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def know(self, model: nn.Module) -> None:
        """Names for the places: of the model's modules and parameters."""
        modules = {id(module): name for name, module in model.named_modules() if name}
        self._names = modules | {id(parameter): name for name, parameter in model.named_parameters()}

    def on_start(self, state: State) -> None:
        self._step, self._first, self._since = state.step + 1, True, time.monotonic()

    def on_step(self, state: State) -> None:
        if self._reported == state.step and self._ranks.is_main:
            log.warning("step %d has ended after %s", state.step, show_seconds(time.monotonic() - self._since))
        self._step, self._first, self._since = state.step + 1, False, time.monotonic()

    def _clear(self) -> None:
        shutil.rmtree(self._folder.heartbeat, ignore_errors=True)
        self._folder.heartbeat.mkdir(parents=True)

    def _watch(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                self._look()
            except OSError as error:  # a full disk, a file system that is away for a while: look again
                log.warning("the watchdog of rank %d: %s", self._ranks.rank, error)
                self._ended.wait(30)

    def _look(self) -> None:
        place = place_of(self._watched)
        pause = next((word for word in place.words if word in PAUSES), None)
        if pause != self._pause:
            self._pause, self._since = pause, time.monotonic()
        limit = self._settings.slow_seconds if pause or self._first else self._settings.hang_seconds
        self._write_heartbeat(place)
        if time.monotonic() - self._since > limit and self._reported < self._step:
            _replace(self._folder.heartbeat / "hang", str(max(self._step, self._asked())))
        if self._asked() > self._reported:
            self._report(self._asked())

    def _asked(self) -> int:
        try:
            return int((self._folder.heartbeat / "hang").read_text())
        except FileNotFoundError:
            return -1

    def _write_heartbeat(self, place: Place) -> None:
        self._beats += 1
        told = {"step": self._step, "place": str(place), "waits": place.collective is not None}
        told |= {"beat": self._beats, "hang": self._reported}
        _replace(self._folder.heartbeat / f"rank-{self._ranks.rank}", json.dumps(told))

    def _report(self, step: int) -> None:
        folder, rank = self._folder.hangs / f"step-{step:08d}", self._ranks.rank
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / "where.txt"
        if self._ranks.is_main:
            said.unlink(missing_ok=True)  # of an earlier start
        waited = show_seconds(time.monotonic() - self._since)
        place = place_of(self._watched, self._names)
        with (folder / f"rank-{rank}.txt").open("w", encoding="utf-8") as file:
            file.write(f"rank {rank}, step {self._step}, since {waited} in {place}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self._reported = step
        self._write_heartbeat(place)
        for _ in range(PATIENCE * (1 if self._ranks.is_main else 2)):  # rank 0 speaks, others where it cannot
            if said.exists() or (self._ranks.is_main and len(self._told(step)) == self._ranks.world_size):
                break
            self._ended.wait(self._beat)
        told = self._told(step)
        if not said.exists() and rank == min(told):
            line = self._line(step, waited)
            _replace(said, line + "\n")
            log.warning("%s\n  stacks: %s", line, folder)
            if self._settings.on_hang == "stop":
                self._folder.update_run(status="failed", error=line)
        if self._settings.on_hang == "stop" and not self._ended.wait(self._beat):
            self._end(EXIT_CODE)

    def _told(self, step: int) -> list[int]:
        """The ranks that have written their stacks."""
        return [rank for rank in range(self._ranks.world_size) if self._heartbeat(rank).get("hang") == step]

    def _heartbeat(self, rank: int) -> dict[str, Any]:
        try:
            return json.loads((self._folder.heartbeat / f"rank-{rank}").read_text())
        except FileNotFoundError:
            return {}

    def _line(self, step: int, waited: str) -> str:
        """`step 12 hangs, 600 s so far: rank 3 in data.next, ranks 0-2 in all_gather of blocks.17 (forward)`. First
        those that the others wait for: not in a collective themselves, and few.
        """
        ranks: dict[tuple[bool, str], list[int]] = {}
        for rank in range(self._ranks.world_size):
            known = self._heartbeat(rank)
            alive, place = known.get("hang") == step, known.get("place", "nothing")
            where = f"in {place}" if alive else f"without heartbeat, last in {place}"
            ranks.setdefault((alive and known["waits"], where), []).append(rank)
        groups = sorted(ranks.items(), key=lambda group: (group[0][0], len(group[1])))
        parts = [f"{_listed(some)} {where}" for (_, where), some in groups]
        return f"step {step} hangs, {waited} so far: {', '.join(parts)}"


def _listed(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0-2,5`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"rank{'s' if len(spans) > 1 or spans[0][0] != spans[0][1] else ''} {text}"


def _replace(path: Path, text: str) -> None:
    """Write a file whole, so that no reader sees half of it. One writer at a time and process."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
