"""What the ranks of the test of stochastic depth do."""

from __future__ import annotations

from functools import partial
from typing import Any

from intern_trainer.engine import build_engine
from intern_trainer.ranks import Ranks

from tests.distributed.engine_worker import build_debug, debug_batch, debug_config, run_steps


def losses(ranks: Ranks, cases: list[dict[str, Any]]) -> list[list[float]]:
    """Of each case over three steps of the real towers; half of the last block's branches are dropped."""
    results = []
    for case in cases:
        config = debug_config(case, ranks.world_size)
        options = {"drop_path_rate": 0.5, "drop_path_mode": case["mode"]}
        config = config.model_copy(update={"model": config.model.model_copy(update={"image_options": options})})
        engine = build_engine(config, ranks, partial(build_debug, config, ranks))
        if case.get("recompute"):
            engine.module.set_grad_checkpointing()
        results.append(run_steps(engine, config, ranks, 1, range(3), debug_batch)["losses"])
        engine.close()
    return results
