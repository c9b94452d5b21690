"""The folder of a run, and the files in it that are not checkpoints.

config.yaml       complete configuration          ds_config.json   what DeepSpeed got
run.json          status, versions, commit, command, machine, each start of the run
log.txt           the log                         metrics.jsonl    one record a logged step        tensorboard/
evaluation.json   results with split, step, weights, chance levels and counts
probes.json       results of `intern-trainer probe`, with what they were made under
samples.json      test pictures and their top captions            report.html      profile/
tokenizer/        the text tower's tokenizer, where it is not CLIP's
heartbeat/        where each rank is                              hangs/           stacks of all ranks, a folder a hang
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from intern_trainer.errors import ConfigError


class RunFolder:
    """Paths and small JSON files of one run. Files are replaced whole, so a reader never sees half of one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.ds_config = path / "ds_config.json"
        self.run = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.evaluation = path / "evaluation.json"
        self.probes = path / "probes.json"
        self.samples = path / "samples.json"
        self.report = path / "report.html"
        self.profile = path / "profile"
        self.tokenizer = path / "tokenizer"
        self.heartbeat = path / "heartbeat"
        self.hangs = path / "hangs"

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of a run that was started before.

        Raises:
            ConfigError: `path` is no such folder.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise ConfigError(
                f"{path} is not the folder of a run: it holds no config.yaml", fix="give a folder such as runs/debug"
            )
        return folder

    def settings(self) -> list[str]:
        """What to set so that the run's configuration finds the files that the run keeps, wherever it was moved to."""
        return [f"model.text.tokenizer={self.tokenizer}"] if self.tokenizer.is_dir() else []

    def keep_tokenizer(self, source: Path) -> None:
        """Copy the tokenizer's files, once: a run keeps to the one that it began with."""
        if self.tokenizer.is_dir():
            return
        scratch = self.path / ".tokenizer.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (source / name).is_file():
                shutil.copy(source / name, scratch)
        scratch.rename(self.tokenizer)

    def read(self, path: Path, default: Any) -> Any:
        """The JSON in one of our files; `default` where it does not exist."""
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default

    def write(self, path: Path, value: Any) -> None:
        scratch = path.with_name(f".{path.name}.partial")
        scratch.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(scratch, path)

    def update_run(self, **values: Any) -> None:
        """Put values into run.json."""
        self.write(self.run, self.read(self.run, {}) | values)

    def add_evaluation(self, entry: dict[str, Any]) -> None:
        """Put one evaluation into evaluation.json, in the place of an older one of the same split, step and weights."""
        self._add(self.evaluation, entry, ("split", "step", "weights"))

    def add_probe(self, entry: dict[str, Any]) -> None:
        """Put one probe into probes.json, in the place of an older one of the same task, step, weights and protocol."""
        self._add(self.probes, entry, ("task", "step", "weights", "protocol"))

    def _add(self, path: Path, entry: dict[str, Any], same: tuple[str, ...]) -> None:
        kept = [old for old in self.read(path, []) if any(old[key] != entry[key] for key in same)]
        self.write(path, [*kept, entry])

    def was_evaluated(self, split: str, step: int) -> bool:
        """Whether evaluation.json holds results of this split and step."""
        return any(entry["split"] == split and entry["step"] == step for entry in self.read(self.evaluation, []))

    def forget_evaluations_after(self, step: int) -> list[dict[str, Any]]:
        """Drop what was evaluated after the step that the run goes on from; gives what stays."""
        entries = self.read(self.evaluation, [])
        kept = [entry for entry in entries if entry["step"] <= step]
        if len(kept) < len(entries):
            self.write(self.evaluation, kept)
        return kept
