"""Which checkpoints of a run stay."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from intern_trainer.checkpoint import layout, verify
from intern_trainer.errors import CheckpointError
from intern_trainer.ranks import Ranks

log = logging.getLogger(__name__)


def retain(current: Path, keep_last: int, keep_best: int, scores: Mapping[int, float], ranks: Ranks) -> list[Path]:
    """Delete checkpoints beyond the last `keep_last` and the best `keep_best`; what it deleted (rank 0; no collective).

    Only whole checkpoints up to `current` count and only they are deleted: a damaged one, or one of a later step that
    this run has passed over, neither takes the place of a good one nor is ours to throw away.

    Args:
        current: the checkpoint that was just completed; it always stays.
        scores: step -> result that is better when larger, such as `progress.scores(cfg.checkpoint.best_metric)`.
    """
    if not ranks.is_main:
        return []
    newest = layout.step_of(current)
    good = [path for path in layout.step_dirs(current.parents[1]) if layout.step_of(path) <= newest and _is_whole(path)]
    if current not in good:
        return []
    rated = [path for path in good if math.isfinite(scores.get(layout.step_of(path), math.nan))]
    best = sorted(rated, key=lambda path: (scores[layout.step_of(path)], layout.step_of(path)), reverse=True)[
        :keep_best
    ]
    removed = [path for path in good if path not in good[-max(keep_last, 1) :] and path not in best]
    for path in removed:
        _remove(path)
    return removed


def forget_after(run_dir: Path, step: int, ranks: Ranks) -> None:
    """Delete the checkpoints of later steps, which the run makes again. Collective."""

    def forget() -> None:
        for path in layout.step_dirs(run_dir):
            if layout.step_of(path) > step:
                _remove(path)

    ranks.on_main(forget)


def _remove(path: Path) -> None:
    aside = layout.sibling(path, "gone")
    os.rename(path, aside)  # so that a half-deleted folder is never taken for a checkpoint
    shutil.rmtree(aside, ignore_errors=True)
    log.info("removed %s", path)


def _is_whole(path: Path) -> bool:
    try:
        verify.check_sizes(path)
    except CheckpointError:
        return False
    return True
