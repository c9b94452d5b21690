from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from intern_trainer.config.load import load_config
from intern_trainer.config.schema import Config
from intern_trainer.observe import phases
from intern_trainer.observe.log import log_to_file, start_logging
from intern_trainer.observe.memory import memory_bytes, show_bytes
from intern_trainer.observe.start import describe_settings, describe_start
from intern_trainer.observe.versions import blank_secrets, command_line, git_state, versions
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.21, "0.2 s"),
        (59.94, "59.9 s"),
        (245, "4 min 05 s"),
        (11220, "3 h 07 min"),
        (2 * 86400 + 3 * 3600, "2 d 03 h"),
    ],
)
def test_durations_for_people(seconds: float, shown: str) -> None:
    assert phases.show_seconds(seconds) == shown


def test_a_phase_says_what_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("intern_trainer").propagate = True
    with caplog.at_level(logging.INFO), phases.phase("building the model"):
        assert "building the model ..." in caplog.text
    assert "building the model: 0.0 s" in caplog.text
    assert "building the model" in phases.durations


def test_other_ranks_are_heard_only_when_something_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start_logging(rank=1, world_size=2)
    log_to_file(tmp_path, rank=1)
    log = logging.getLogger("intern_trainer.some.module")
    log.info("all is well")
    log.warning("a bad sample [bold]x[/bold]")
    assert capsys.readouterr().out.strip() == "[rank 1] a bad sample [bold]x[/bold]"
    assert (tmp_path / "log.txt").read_text().count("\n") == 1
    logging.getLogger("intern_trainer").handlers.clear()


def test_memory() -> None:
    assert memory_bytes(torch.device("cpu")) > 50 * 2**20
    assert show_bytes(812 * 2**20) == "812 MiB"
    assert show_bytes(4.25 * 2**30) == "4.2 GiB"


def test_versions_name_what_decides_a_run() -> None:
    assert {"python", "intern_trainer", "torch", "deepspeed"} <= set(versions())
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}
    state = git_state()
    assert state == {} or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_no_secret_is_written_down() -> None:
    command = command_line(
        ["run.py", "data.train=https://user:pa55@host/a.tar?X-Amz-Signature=abc", "log.wandb.api_key=k3y", "optim.lr=1"]
    )
    assert "pa55" not in command
    assert "abc" not in command
    assert "k3y" not in command
    assert "optim.lr=1" in command
    assert blank_secrets("HF_TOKEN=hf_x") == "HF_TOKEN=***"


def test_settings_are_written_apart_from_the_start(tmp_path: Path) -> None:
    """A start whose checkpoint is refused must leave the settings of the run that is there."""
    folder, ranks, config = RunFolder(tmp_path / "run"), Ranks(0, 1, 0, torch.device("cpu")), Config()
    describe_start(folder, config, ranks)
    assert folder.read(folder.run, {})["starts"][0]["world_size"] == 1
    assert not folder.config.exists()
    describe_settings(folder, config, ranks)
    assert load_config(folder.config) == config
    assert folder.read(folder.ds_config, {})["train_batch_size"] == config.train.global_batch
