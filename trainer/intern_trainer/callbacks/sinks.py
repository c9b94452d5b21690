"""Places that records go to: RUN/metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_trainer.config.schema import Wandb
from intern_trainer.errors import EnvironmentFault
from intern_trainer.state import State

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_NOT_CURVES = ("step", "time", "eta_seconds")


def read_records(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; a last line that a kill cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def truncate_records(path: Path, step: int) -> list[dict[str, float]]:
    """Drop the records after `step`, which the run will make again, and give those that stay. The file is replaced
    whole, never half-written.
    """
    kept = [record for record in read_records(path) if record["step"] <= step]
    if path.is_file():
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(scratch, path)
    return kept


class JsonLines:
    """One JSON object a record, floats in full precision."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, state: State) -> None:
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, record: dict[str, float]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """Evaluations have a file of their own, evaluation.json."""

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files under RUN/tensorboard/. What lies after the step that a run resumes from is hidden by the resumed
    run's events.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, state: State) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # also at step 0: a start that was killed before its first checkpoint has left events
        self._writer: SummaryWriter = SummaryWriter(str(self.folder), purge_step=state.step + 1)

    def write(self, step: int, record: dict[str, float]) -> None:
        for name, value in record.items():
            if name not in _NOT_CURVES:
                self._writer.add_scalar(f"train/{name}", value, step)

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        for name, value in results.items():
            self._writer.add_scalar(f"validation/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run for one run folder, resumes included.

    Raises:
        EnvironmentFault: wandb is not installed, or refuses to start.
    """

    def __init__(self, settings: Wandb, run_dir: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise EnvironmentFault(
                "log.wandb is set and wandb is not installed", fix="pip install wandb, or leave log.wandb out"
            ) from error
        self._wandb: Any = wandb
        self.settings, self.run_dir = settings, run_dir

    def start(self, state: State) -> None:
        id_file = self.run_dir / "wandb_id.txt"
        known = id_file.read_text().strip() if id_file.is_file() else None
        try:
            self._run = self._wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                mode=self.settings.mode,
                id=known,
                resume="allow",
                dir=str(self.run_dir),
                name=self.run_dir.name,
                config=state.config.model_dump(mode="json", by_alias=True),
            )
        except self._wandb.Error as error:
            raise EnvironmentFault(f"wandb: {error}", fix="wandb login, or log.wandb.mode=offline") from error
        id_file.write_text(self._run.id)

    def write(self, step: int, record: dict[str, float]) -> None:
        curves = {f"train/{name}": value for name, value in record.items() if name not in _NOT_CURVES}
        self._run.log(curves, step=step)

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        self._run.log({f"validation/{name}": value for name, value in results.items()}, step=step)

    def close(self) -> None:
        self._run.finish()
