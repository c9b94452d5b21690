"""What an engine really holds and sends: bytes of the distinct live tensor storages that are reached from it, found by
walking, and bytes of each call of a collective and of what goes from stage to stage. Neither knows the plan.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from intern_trainer.config.schema import Config
from intern_trainer.engine import Engine
from intern_trainer.observe.storages import storages
from intern_trainer.parallel.transport import HEADER
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask
from torch import Tensor

from tests.distributed.pipeline_worker import Case, case_config, run_steps, start

STAGES = "to stages"
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "isend": STAGES,
}
"""torch.distributed's functions, and what a plan calls them."""


def count_calls(sent: Counter[str]) -> None:
    """From now on every call adds the bytes of its larger tensor (the full one) to its kind; ours to `our` kinds.

    Of what goes between stages headers are left out: 4 KiB before each micro-batch's tensors, from host to host.
    """

    def counted(call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            given = [value for value in (*args, *options.values()) if isinstance(value, Tensor | list)]
            sizes = [sum(t.nbytes for t in value) if isinstance(value, list) else value.nbytes for value in given]
            ours = kind != STAGES and "intern_trainer" in sys._getframe(1).f_code.co_filename
            sent[f"our {kind}" if ours else kind] += max(sizes) if not _is_header(given) else 0
            return call(*args, **options)

        return wrapper

    for name, kind in COLLECTIVES.items():
        setattr(dist, name, counted(getattr(dist, name), kind))


def _is_header(given: list[Any]) -> bool:
    return isinstance(given[0], Tensor) and given[0].dtype == torch.uint8 and given[0].numel() == HEADER


def measure(ranks: Ranks, cases: list[Case]) -> list[dict[str, Any]]:
    """By case: `held`, the bytes at the two heights of a step and after it; `sent`, those of each kind of call."""
    results = []
    sent: Counter[str] = Counter()
    count_calls(sent)
    for case in cases:
        config = case_config(case)
        engine, task = start(case, config, ranks)
        results.append({"held": _steps(case, config, engine, task, sent), "sent": dict(sent)})
        engine.close()
        deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # it takes one hpZ a process
    return results


def _steps(case: Case, config: Config, engine: Engine, task: ContrastiveTask, sent: Counter[str]) -> dict[str, int]:
    """Of the third step: moments are there after the first, and ZeRO-3 knows the order of the modules by the third."""
    run_steps(case, config, engine, task, range(2))
    held: dict[str, int] = {}

    def note(height: str, *_: Any) -> None:
        held[height] = max(held.get(height, 0), sum(storages(engine).values()))

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            result = call(*args)
            note("backward")
            return result

        return wrapper

    engine.optimizer.register_step_pre_hook(partial(note, "update"))
    last: Any = engine if engine.pipeline is None else engine.pipeline  # it reduces what all micro-batches added up
    name = "backward" if engine.pipeline is None else "train"
    setattr(last, name, noted(getattr(last, name)))
    sent.clear()
    run_steps(case, config, engine, task, range(2, 3))
    note("between steps")
    return held
