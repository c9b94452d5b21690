"""Starts the trainer from a bare clone: `python trainer/run.py`, `torchrun ... trainer/run.py`, `deepspeed
trainer/run.py --ds_config ...`.
"""

import sys
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parents[1] / root) for root in ("kernels", "model_zoo", "trainer")]

from intern_trainer.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(default_verb="train"))
