"""Watching over a run: hangs, steps that are not finite, spikes of the loss."""

from __future__ import annotations
