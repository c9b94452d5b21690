"""Says in the log when the data keeps the device waiting, and what to change."""

from __future__ import annotations

import logging

from intern_trainer.config.phases import Phases
from intern_trainer.observe.data_bound import advice, stage_times, verdict
from intern_trainer.state import State
from intern_trainer.threads import cores_a_rank

log = logging.getLogger(__name__)


class DataBound:
    """A sink of records: speaks when waiting begins to be worth it, and again when another stage is to blame."""

    def __init__(self) -> None:
        self._blamed: str | None = None

    def start(self, state: State) -> None:
        self._config, self._world_size, self._phases = state.config, state.ranks.world_size, Phases(state.config)

    def write(self, step: int, record: dict[str, float]) -> None:
        said = verdict(record)
        blamed = next(iter(stage_times(record)), "") if said else None
        if said and blamed != self._blamed:
            images = self._phases.at(step - 1).global_batch / self._world_size
            log.warning("%s. To change: %s", said, advice(record, self._config.data, images, cores_a_rank()))
        self._blamed = blamed

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Holds nothing."""
