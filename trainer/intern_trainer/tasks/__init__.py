"""Tasks by name: model + loss + metrics."""

from __future__ import annotations

from collections.abc import Callable

from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.base import Task
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_trainer.tasks.declip import DeclipTask
from intern_trainer.tasks.local import LocalTask


def _contrastive(config: Config, ranks: Ranks) -> Task:
    return (DeclipTask if config.loss.kind == "declip" else ContrastiveTask)(config, ranks)


TASKS: dict[str, Callable[[Config, Ranks], Task]] = {"contrastive": _contrastive, "local": LocalTask}


def build_task(config: Config, ranks: Ranks) -> Task:
    """The task that `config.task` names.

    Raises:
        ConfigError: the model cannot be built as configured.
    """
    return TASKS[config.task](config, ranks)


__all__ = ["TASKS", "Task", "build_task"]
