"""INTERN's trainer: configuration, data, tasks, engine, loop, checkpoints, evaluation and reports."""

__version__ = "0.1.0"
