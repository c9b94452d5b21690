"""One log for people: on the terminal of rank 0, and in RUN/log.txt.

Every module logs through `logging.getLogger(__name__)`; here it is decided where that goes. Other ranks are heard
only from WARNING on.
"""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

_ROOT = "intern_trainer"
_console: Console | None = None


def console() -> Console:
    """The terminal that the log and the progress line share, so that they do not write over each other."""
    global _console
    if _console is None:
        _console = Console(soft_wrap=True, highlight=False)  # to what sys.stdout is at the time
    return _console


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):  # the progress line shows it in its own way
            return
        console().print(
            self.format(record), markup=False, style="yellow" if record.levelno >= logging.WARNING else None
        )
        console().file.flush()


def start_logging(rank: int, world_size: int) -> None:
    """Send our log to the terminal: all of it on rank 0, warnings and worse (with the rank's number) on the others."""
    logger = logging.getLogger(_ROOT)
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = _ConsoleHandler(logging.INFO if rank == 0 else logging.WARNING)
    handler.setFormatter(
        logging.Formatter("%(message)s" if world_size == 1 or rank == 0 else f"[rank {rank}] %(message)s")
    )
    logger.addHandler(handler)


def log_to_file(run_dir: Path, rank: int) -> None:
    """Also append the log to RUN/log.txt, with times: rank 0 writes everything, the other ranks their warnings."""
    handler = logging.FileHandler(run_dir / "log.txt", encoding="utf-8", delay=True)
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
    logging.getLogger(_ROOT).addHandler(handler)
