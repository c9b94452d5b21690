"""What the ranks of the tests of phases do: train through changes of batch and picture, save on the way, go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intern_trainer.callbacks import Callback
from intern_trainer.checkpoint import Progress, load, save
from intern_trainer.checkpoint.layout import step_dir
from intern_trainer.config.phases import Phases
from intern_trainer.config.schema import Config
from intern_trainer.data import build_train_data
from intern_trainer.engine import build_engine
from intern_trainer.loop import run_steps
from intern_trainer.optim import learning_rate
from intern_trainer.ranks import Ranks
from intern_trainer.state import State
from intern_trainer.tasks import build_task

from tests.distributed.engine_worker import case_config
from tests.distributed.engine_worker import run_steps as run_engine
from tests.distributed.towers import Towers

STEPS = 8  # of 8 samples without phases; with them 2 of 16, 2 of 8 in two micro-batches, 2 of 8


def accumulation(ranks: Ranks, payload: dict[str, Any]) -> list[list[float]]:
    """Losses of each case, whose steps have `micro_batches` micro-batches."""
    results = []
    for case in payload["cases"]:
        config = case_config(case, ranks.world_size)
        engine, losses = build_engine(config, ranks, Towers), []
        for step, parts in enumerate(payload["micro_batches"]):
            engine.accumulate(parts)
            losses += run_engine(engine, config, ranks, parts, [step])["losses"]
        engine.close()
        results.append(losses)
    return results


def phased(stage: int, workers: int, world_size: int) -> Config:
    phases = [
        {"until": 0.5, "image_size": 32, "global_batch": 16},
        {"until": 0.75, "image_size": 48, "micro_batch": 4 // world_size},
    ]
    return Config.model_validate(
        {
            "model": {
                "image": "metanet_debug", "image_size": 64, "embed_dim": 16,
                "image_options": {"drop_path_rate": 0.0},
                "text": {"width": 32, "layers": 1, "heads": 2, "context_length": 12},
            },
            "data": {"lanes": 4, "shuffle_window": 64, "workers": workers, "augment": {"flip": 0.5}},
            "train": {"steps": STEPS, "global_batch": 8, "precision": "fp32", "seed": 5, "phases": phases},
            "optim": {"lr": 1e-4, "schedule": {"warmup_steps": 2}},
            "ds": {"zero_optimization": {"stage": stage}},
        }
    )  # fmt: skip


class _Watcher(Callback):
    def __init__(self, ranks: Ranks, save_at: Any) -> None:
        self.ranks, self.save_at = ranks, save_at
        self.steps: list[dict[str, Any]] = []

    def on_step(self, state: State) -> None:
        ids = sorted(id for mine in self.ranks.gather(state.micro_ids) for id in mine)
        self.steps.append({"loss": state.metrics["loss"], "ids": ids, "samples": state.samples, "lr": state.lr})
        if state.step in self.save_at[0]:
            self.save_at[1](state)


def run(ranks: Ranks, payload: dict[str, Any]) -> list[dict[str, Any]]:
    """From step `from` (a checkpoint in `folder`, if not 0) to the end; saves at the steps `save_at`."""
    config = phased(payload["stage"], payload.get("workers", 0), ranks.world_size)
    task, folder = build_task(config, ranks), Path(payload["folder"])
    data = build_train_data(config, ranks, task.views)
    engine = build_engine(config, ranks, task.build_model)
    progress = load(engine, step_dir(folder, payload["from"]), ranks) if payload.get("from") else Progress(step=0)

    def keep(state: State) -> None:
        reached = Progress(state.step, state.samples, data_fingerprint=data.fingerprint)
        save(engine, reached, folder, ranks, config)

    state = State(config, folder, ranks, Phases(config).steps, progress.step, progress.samples)
    watcher = _Watcher(ranks, (payload.get("save_at", []), keep))
    run_steps(task, engine, data, state, watcher, lambda step: learning_rate(step, config))
    data.close()
    engine.close()
    return watcher.steps


def several(ranks: Ranks, payload: list[tuple[str, Any]]) -> list[Any]:
    """The results of several functions of this module, in one process group."""
    return [globals()[name](ranks, argument) for name, argument in payload]
