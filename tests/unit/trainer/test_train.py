"""How a run ends when what it writes besides checkpoints finds no room."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from intern_trainer import train
from intern_trainer.config.schema import Config
from intern_trainer.errors import EnvironmentFault
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder

CPU = Ranks(0, 1, 0, torch.device("cpu"))


def end_with(number: int, folder: Path) -> None:
    with train._full_disk_in_words(RunFolder(folder)):
        raise OSError(number, "reason", str(folder / "metrics.jsonl"))


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"the disk is full: .*metrics\.jsonl"):
        end_with(errno.ENOSPC, tmp_path)


def test_another_failure_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="reason"):
        end_with(errno.EIO, tmp_path)


def test_a_full_disk_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.json cannot be written then, either."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def failing(*_: Any) -> None:
        raise EnvironmentFault("the disk is full: step-00000006")

    for name, value in {
        "init_ranks": lambda: CPU, "outlive_readers": lambda: None, "set_threads": lambda config: None,
        "check_before_start": lambda *_: None, "describe_start": lambda *_: None, "_train": failing,
        "start_logging": lambda *_: None, "log_to_file": lambda *_: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(RunFolder, "update_run", full)
    with pytest.raises(EnvironmentFault, match="step-00000006"):
        train.train(Config(), tmp_path)
