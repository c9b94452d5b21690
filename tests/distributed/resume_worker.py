"""What the ranks of the resume tests do: train, save to disk, go on; and load in other layouts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

from intern_trainer.checkpoint import CheckpointReader, Progress, Saver, load, newest_good, save
from intern_trainer.checkpoint.shards import write_slices
from intern_trainer.engine import Engine, build_engine
from intern_trainer.ranks import Ranks

from tests.distributed.engine_worker import HalfFrozen, case_config, digest, run_steps

BEFORE, AFTER = range(3), range(3, 6)


def write_and_read(ranks: Ranks, payload: dict[str, Any]) -> dict[str, Any]:
    """Save under each ZeRO stage of `write`, at once and in the background; then load the latter for each pair of
    `read`: stage that wrote, stage that reads.
    """
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
    beside = _save_beside(engine, config, ranks, run)
    engine.close()
    return {**beside, "weights": weights, "live": live}


def _save_beside(engine: Engine, config: Any, ranks: Ranks, run: Path) -> dict[str, Any]:
    """The same step once more, in the background: no rank writes a byte before all have trained on. The losses of that
    training, and whether the checkpoint was there at its end.
    """
    opened = threading.Event()

    def held_up(*given: Any) -> Any:
        assert opened.wait(60)
        return write_slices(*given)

    settings = config.checkpoint.model_copy(update={"background": "always"})
    saver = Saver(engine, run / "beside", ranks, config.model_copy(update={"checkpoint": settings}))
    with patch("intern_trainer.checkpoint.write.write_slices", held_up):
        saver.save(Progress(len(BEFORE), samples=24))
        losses = []
        for step in AFTER:
            losses += run_steps(engine, config, ranks, 1, [step])["losses"]
            assert saver.poll() is None
        before = newest_good(run / "beside", ranks)
        opened.set()
        saver.finish()
    saver.close()
    return {"losses": losses, "complete_before": before is not None}


def _read(ranks: Ranks, run: Path, stage: int) -> dict[str, Any]:
    config = case_config({"stage": stage, "ema_decay": 0.9}, ranks.world_size)
    config = config.model_copy(update={"train": config.train.model_copy(update={"seed": 99})})
    engine = build_engine(config, ranks, HalfFrozen)
    path = newest_good(run / "beside", ranks)
    assert path is not None
    progress = load(engine, path, ranks)
    result = {"step": progress.step, "losses": run_steps(engine, config, ranks, 1, AFTER)["losses"]}
    engine.close()
    return result
