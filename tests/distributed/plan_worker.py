"""What an engine really holds and sends: bytes of the distinct live tensor storages that are reached from it, found by
walking, and bytes of each call of a collective. Neither knows the plan.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from intern_trainer.batch import Batch
from intern_trainer.engine import Engine, build_engine
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask
from torch import Tensor

from tests.distributed.engine_worker import build_debug, debug_batch, debug_config

LEAVES = (str, bytes, int, float, bool, type, types.ModuleType, types.FunctionType, torch.dtype, torch.device)
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
}
"""torch.distributed's functions, and what a plan calls them."""


def storages(root: Any) -> dict[int, int]:
    """Bytes of each distinct tensor storage that attributes, containers and gradients lead to, by its address."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or thing is None or isinstance(thing, LEAVES):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
            waiting.append(thing.grad if thing.is_leaf else None)
        waiting += _parts(thing)
    return found


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, list | tuple | set | frozenset) or type(thing).__module__ == "collections":
        return list(thing)
    return list(getattr(thing, "__dict__", {}).values())


def count_calls(sent: Counter[str]) -> None:
    """From now on every call adds the bytes of its larger tensor (the full one) to its kind; ours to `our` kinds."""

    def counted(call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            given = [value for value in (*args, *options.values()) if isinstance(value, Tensor | list)]
            sizes = [sum(t.nbytes for t in value) if isinstance(value, list) else value.nbytes for value in given]
            ours = "intern_trainer" in sys._getframe(1).f_code.co_filename
            sent[f"our {kind}" if ours else kind] += max(sizes)
            return call(*args, **options)

        return wrapper

    for name, kind in COLLECTIVES.items():
        setattr(dist, name, counted(getattr(dist, name), kind))


def measure(ranks: Ranks, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By case: `held`, the bytes at the two heights of a step, and `sent`, those of each kind of collective."""
    results = []
    sent: Counter[str] = Counter()
    count_calls(sent)
    for case in cases:
        config = debug_config(case, ranks.world_size)
        engine = build_engine(config, ranks, partial(build_debug, config, ranks))
        results.append({"held": _steps(engine, config, ranks, case["accumulation"], sent), "sent": dict(sent)})
        engine.close()
    return results


def _steps(engine: Engine, config: Any, ranks: Ranks, accumulation: int, sent: Counter[str]) -> dict[str, int]:
    """Three steps: moments are there after the first, and ZeRO-3 knows the order of the modules by the third."""
    held: dict[str, int] = {}

    def note(height: str, *_: Any) -> None:
        held[height] = max(held.get(height, 0), sum(storages(engine).values()))

    engine.optimizer.register_step_pre_hook(partial(note, "update"))
    task = ContrastiveTask(config, ranks)
    micro = config.train.global_batch // accumulation // ranks.world_size
    engine.train()
    for step in range(3):
        sent.clear()
        for index in range(accumulation):
            whole = debug_batch(step, index, micro * ranks.world_size)
            mine = {name: t[ranks.rank * micro : (ranks.rank + 1) * micro] for name, t in whole.items()}
            loss, _ = task.loss(task.forward(engine, Batch(mine, [""] * micro)))
            engine.backward(loss)
        note("backward")
        engine.step(1e-4)
    return held
