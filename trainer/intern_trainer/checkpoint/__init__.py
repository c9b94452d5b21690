"""Checkpoints: whole, safe, and readable by any layout. `layout.py` describes the format.

Saving:    path = save(engine, progress, run_dir, ranks, cfg), then retain(path, ...)
Resuming:  tidy(run_dir, ranks); path = newest_good(run_dir, ranks); progress = load(engine, path, ranks), then
           check_data(progress, data.fingerprint)
Reading:   CheckpointReader(path).weights("ema"), for evaluation and export: no process group, no GPU
"""

from intern_trainer.checkpoint.estimate import announce_slow_saves
from intern_trainer.checkpoint.load import check_data, load
from intern_trainer.checkpoint.progress import Progress
from intern_trainer.checkpoint.read import CheckpointReader
from intern_trainer.checkpoint.retain import forget_after, retain
from intern_trainer.checkpoint.verify import newest_good, tidy, verify
from intern_trainer.checkpoint.write import save

__all__ = [
    "CheckpointReader",
    "Progress",
    "announce_slow_saves",
    "check_data",
    "forget_after",
    "load",
    "newest_good",
    "retain",
    "save",
    "tidy",
    "verify",
]
