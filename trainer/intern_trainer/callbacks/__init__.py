"""Everything optional in a run: records, evaluation, checkpoints, profile."""

from __future__ import annotations

from intern_trainer.callbacks.base import Callback, Callbacks

__all__ = ["Callback", "Callbacks"]
