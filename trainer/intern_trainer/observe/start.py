"""What is written down before a run starts: configuration, what DeepSpeed gets, versions, commit, command, machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from intern_trainer.config import ds
from intern_trainer.config.load import write_config
from intern_trainer.config.phases import Phases
from intern_trainer.config.pipeline import data_ranks
from intern_trainer.config.schema import Config
from intern_trainer.errors import EnvironmentFault
from intern_trainer.observe.versions import command_line, git_state, machine, versions
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder


def describe_start(folder: RunFolder, config: Config, ranks: Ranks) -> None:
    """Make the run's folder and its run.json; called on rank 0. Every start of the run is kept in `starts`.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    start: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_line(),
        "world_size": ranks.world_size,
        "git": git_state(),
        "versions": versions(),
        "machine": machine(ranks.device),
    }
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if config.model.text.tokenizer != "clip":
            folder.keep_tokenizer(Path(config.model.text.tokenizer))
        earlier = folder.read(folder.run, {}).get("starts", [])
        folder.update_run(status="starting", steps=Phases(config).steps, starts=[*earlier, start])
    except OSError as error:
        raise EnvironmentFault(
            f"the run's folder {folder.path} cannot be written: {error.strerror or error}",
            fix="give another run.dir, or make room",
        ) from error


def describe_settings(folder: RunFolder, config: Config, ranks: Ranks) -> None:
    """Write config.yaml and ds_config.json; called on rank 0, once the run's checkpoint has been taken up: a start that
    is refused leaves the settings of the run that is there."""
    write_config(config, folder.config)
    effective = json.dumps(ds.effective(config, data_ranks(config, ranks.world_size)), indent=2)
    folder.ds_config.write_text(effective + "\n", encoding="utf-8")
