"""Tasks by name: model + loss + metrics."""

from __future__ import annotations

from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.base import Task
from intern_trainer.tasks.contrastive import ContrastiveTask

TASKS = {"contrastive": ContrastiveTask}


def build_task(config: Config, ranks: Ranks) -> Task:
    """The task that `config.task` names.

    Raises:
        ConfigError: the model cannot be built as configured.
    """
    return TASKS[config.task](config, ranks)


__all__ = ["TASKS", "Task", "build_task"]
