"""What a callback sees of the run: a small record, not the loop's insides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks


@dataclass(frozen=True)
class Rollback:
    """Go on from `checkpoint`, and leave out `steps` (numbers from 0)."""

    checkpoint: Path
    steps: list[int]


@dataclass
class State:
    """The run at a step boundary. The loop writes it, callbacks read it.

    Attributes:
        step: optimizer steps done since the run's very start (resumes included).
        samples: samples that the model has seen, all ranks together.
        metrics: means over ranks of the last step that was not left out: `loss` and what the task adds; finite Python
            floats. Empty where there was none yet.
        lr: learning rate of the last step. grad_norm: global gradient norm before clipping, of the last step that was
            applied.
        step_seconds: wall time of the last step. data_seconds: the part of it that the device spent waiting for data.
        stage_seconds: what this rank's samples of that step took in the loader, by stage, all its processes together.
        seconds: time spent in the loop since the run's very start (evaluation and saving included, resumes included).
        micro_ids: sample ids of this rank in the last step.
        evaluation: results of the newest evaluation, by name such as `zero_shot/top1`; `evaluated_step` says when.
        stop_reason: set by anyone who wants the run to end at the next boundary (all ranks agree before it is acted
            on).
        checkpoint: newest good checkpoint of this run, if any.
        left_out: numbers (from 0) of steps that a rollback passes over. bad_steps: those left out one by one so far;
            bad_in_a_row: of the last ones.
        loss_statistics: running mean of the loss, see `guard.spikes`. rollback: set where the run is to go back.
    """

    config: Config
    run_dir: Path
    ranks: Ranks
    total_steps: int
    step: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    lr: float = 0.0
    grad_norm: float = 0.0
    step_seconds: float = 0.0
    data_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    micro_ids: list[str] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = -1
    stop_reason: str | None = None
    checkpoint: Path | None = None
    left_out: list[int] = field(default_factory=list)
    bad_steps: int = 0
    bad_in_a_row: int = 0
    loss_statistics: dict[str, float] = field(default_factory=dict)
    rollback: Rollback | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Things found out once at the start: parameter counts, FLOPs a sample, versions, ZeRO stage."""
