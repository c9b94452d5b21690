"""What the ranks of the resume tests do: train, save to disk, go on; and load in other layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intern_trainer.checkpoint import CheckpointReader, Progress, load, newest_good, save
from intern_trainer.engine import build_engine
from intern_trainer.ranks import Ranks

from tests.distributed.engine_worker import HalfFrozen, case_config, digest, run_steps

BEFORE, AFTER = range(3), range(3, 6)


def write_and_read(ranks: Ranks, payload: dict[str, Any]) -> dict[str, Any]:
    """Save under each ZeRO stage of `write`; then load for each pair of `read`: stage that wrote, stage that reads."""
    folder = Path(payload["folder"])
    return {
        "written": {stage: _write(ranks, folder / f"stage{stage}", stage) for stage in payload.get("write", [])},
        "read": [_read(ranks, folder / f"stage{wrote}", stage) for wrote, stage in payload.get("read", [])],
    }


def _write(ranks: Ranks, run: Path, stage: int) -> dict[str, Any]:
    config = case_config({"stage": stage, "ema_decay": 0.9}, ranks.world_size)
    engine = build_engine(config, ranks, HalfFrozen)
    run_steps(engine, config, ranks, 1, BEFORE)
    path = save(engine, Progress(len(BEFORE), samples=24), run, ranks, config)
    weights = {which: digest(sorted(CheckpointReader(path).weights(which))) for which in ("raw", "ema")}
    with engine.weights("ema"):
        average = digest(sorted(engine.gathered_state_dict()))
    live = {"raw": digest(sorted(engine.gathered_state_dict())), "ema": average}
    losses = run_steps(engine, config, ranks, 1, AFTER)["losses"]
    engine.close()
    return {"losses": losses, "weights": weights, "live": live}


def _read(ranks: Ranks, run: Path, stage: int) -> dict[str, Any]:
    config = case_config({"stage": stage, "ema_decay": 0.9}, ranks.world_size)
    config = config.model_copy(update={"train": config.train.model_copy(update={"seed": 99})})
    engine = build_engine(config, ranks, HalfFrozen)
    path = newest_good(run, ranks)
    assert path is not None
    progress = load(engine, path, ranks)
    result = {"step": progress.step, "losses": run_steps(engine, config, ranks, 1, AFTER)["losses"]}
    engine.close()
    return result
