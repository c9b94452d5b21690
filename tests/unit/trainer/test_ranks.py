"""Who am I among the processes of this run, and what is said when they cannot meet."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import pytest
import torch
from intern_trainer.errors import EnvironmentFault
from intern_trainer.ranks import _adopt_slurm_environment, _init_process_group, local_ranks

CPU = torch.device("cpu")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def test_a_port_in_use_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in zip(LAUNCHER, ("0", "2", "0", "127.0.0.1", str(port)), strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(EnvironmentFault) as caught:
            _init_process_group(0, 2, CPU, timedelta(seconds=5))
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "choose a free one with `--master_port N`" in str(caught.value)


def test_tasks_of_srun_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in {"PROCID": "5", "NTASKS": "16", "LOCALID": "1", "STEP_ID": "0", "JOB_ID": "4711"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    _adopt_slurm_environment()
    assert [os.environ[name] for name in LAUNCHER] == ["5", "16", "1", "node1", "24711"]


@pytest.mark.parametrize(
    ("said", "expected", "sharing_cores"),
    [
        ({}, 1, 1),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_STEP_TASKS_PER_NODE": "1"}, 4, 4),
        ({"LOCAL_SIZE": "8"}, 8, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 4, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,16(x3)"}, 16, 1),
    ],
)
def test_ranks_on_a_node(
    said: dict[str, str], expected: int, sharing_cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert (local_ranks(), local_ranks(with_srun=False)) == (expected, sharing_cores)
