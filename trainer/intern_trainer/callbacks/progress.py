"""How far the run is, for people: a live line on a terminal, plain lines elsewhere and in the log file."""

from __future__ import annotations

import logging

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from intern_trainer.observe.data_bound import verdict
from intern_trainer.observe.log import console
from intern_trainer.observe.memory import show_bytes
from intern_trainer.observe.phases import show_seconds
from intern_trainer.state import State

log = logging.getLogger(__name__)


def progress_text(record: dict[str, float], total_steps: int) -> str:
    """`step 120/600  loss 2.3456  lr 1.0e-03  412 images/s  MFU 41 %  data 3 %  memory 1.2 GiB  ETA 2 min 03 s`; for
    `data 3 %`, where it is worth it, `data-bound: 38 % waiting; decode 31 ms, read 4 ms`.
    """
    width = len(str(total_steps))
    parts = [
        f"step {record['step']:>{width}}/{total_steps}",
        f"loss {record['loss']:.4f}",
        f"lr {record['lr']:.1e}",
        f"{record['images_per_second']:,.0f} images/s",
        verdict(record) or f"data {record['data_wait']:.0%}",
        f"memory {show_bytes(record['memory_bytes'])}",
        f"ETA {show_seconds(record['eta_seconds'])}",
    ]
    if "mfu" in record:
        parts.insert(4, f"MFU {record['mfu']:.0%}")
    return "  ".join(parts)


class ProgressLine:
    """A sink of records. On a terminal the line stays in place under the log; the log file gets every record either
    way.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, state: State) -> None:
        self._total = state.total_steps
        if console().is_terminal:
            columns = (BarColumn(bar_width=16), TextColumn("{task.fields[line]}"))
            self._bar = Progress(*columns, console=console(), transient=True)
            self._task = self._bar.add_task("", total=self._total, completed=state.step, line="first steps ...")
            self._bar.start()

    def write(self, step: int, record: dict[str, float]) -> None:
        line = progress_text(record, self._total)
        if self._bar is None:
            log.info(line)
        else:
            log.info(line, extra={"file_only": True})
            self._bar.update(self._task, completed=step, line=line)

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """The evaluation callback logs its own line."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
