"""What the ranks of the guard's tests do: train with spoiled samples, in part in other modules, or hang."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from intern_trainer.batch import Batch
from intern_trainer.callbacks import Callback, Callbacks
from intern_trainer.checkpoint import Progress, save
from intern_trainer.checkpoint.layout import step_dirs, step_of
from intern_trainer.config.guard import Guard
from intern_trainer.config.schema import Config
from intern_trainer.engine import Engine, build_engine
from intern_trainer.errors import UserError
from intern_trainer.guard.watchdog import Watchdog
from intern_trainer.loop import run_steps
from intern_trainer.optim import learning_rate
from intern_trainer.ranks import Ranks
from intern_trainer.resume import roll_back
from intern_trainer.run_folder import RunFolder
from intern_trainer.state import State
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_trainer.train import train
from torch import Tensor, nn

from tests.distributed.engine_worker import case_config, collect, digest
from tests.distributed.towers import Towers, batch

HUGE = 1e4
"""A pixel that makes `Sour` give gradients that are not finite."""


class _Sours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.sour = bool(x.abs().max() > HUGE / 100)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (math.nan if ctx.sour else 1.0)


class Sour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Sours.apply(x)


class SourTowers(Towers):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(self.stem, Sour())  # type: ignore[assignment]


class TowerData:
    """This rank's rows of `towers.batch`, two micro-batches a step. On rank 1 a pixel of its second sample (of the
    second micro-batch) is `pixel` in the steps `spoiled`. Pictures are made on the way to the device, as the loader's.
    """

    def __init__(self, ranks: Ranks, spoiled: Collection[int] = (), pixel: float = math.nan) -> None:
        self.ranks, self.spoiled, self.pixel = ranks, spoiled, pixel

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        for number in count(step):
            if number not in left_out:
                yield [self._batch(number, micro) for micro in range(2)]

    def _batch(self, step: int, micro: int) -> Batch:
        size, rank = 8 // 2 // self.ranks.world_size, self.ranks.rank
        tensors = {k: t[rank * size : (rank + 1) * size] for k, t in batch(step, micro, 4).items()}
        if step in self.spoiled and rank == 1 and micro == 1:
            tensors["image"][1, 0, 3, 3] = self.pixel
        ids, image = [f"towers/{step}-{micro}/{rank * size + row}" for row in range(size)], tensors.pop("image")
        return Batch(tensors, ids, finish=lambda device: {"image": image.to(device)})


def _engine(case: dict[str, Any], ranks: Ranks, build: Any = Towers) -> tuple[Engine, Any]:
    config = case_config({**case, "accumulation": 2, "ema_decay": 0.9}, ranks.world_size)
    config = config.model_copy(update={"guard": Guard.model_validate(case.get("guard", {}))})
    return build_engine(config, ranks, build), config


class _Losses(Callback):
    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_step(self, state: State) -> None:
        self.found[state.step] = state.metrics.get("loss", 0.0)


def _train(engine: Engine, config: Any, ranks: Ranks, data: TowerData, steps: int, **known: Any) -> dict[str, Any]:
    """What a run came to: its error, losses by step, what it said, and the state."""
    state, losses, error = State(config, Path(), ranks, steps, **known), _Losses(), ""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("intern_trainer").addHandler(handler)
    try:
        run_steps(ContrastiveTask(config, ranks), engine, data, state, losses, lambda step: learning_rate(step, config))
    except UserError as failure:
        error = str(failure)
    logging.getLogger("intern_trainer").removeHandler(handler)
    return {"error": error, "losses": losses.found, "bad": state.bad_steps, "step": state.step, "said": said}


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def discarded(ranks: Ranks, cases: list[dict[str, Any]]) -> list[bool]:
    """Whether weights, moments and average are, at once and later, as if the discarded step had never been. Its
    gradients are finite.
    """
    results = []
    for case in cases:
        ends = []
        for discards in (False, True):
            engine, config = _engine(case, ranks)
            data = TowerData(ranks)
            _train(engine, config, ranks, data, 2)
            if discards:
                before, buffers = collect(engine, ranks)[0], [buffer.clone() for buffer in engine.module.buffers()]
                task = ContrastiveTask(config, ranks)
                for micro_batch in next(data.batches(7)):
                    engine.backward(task.loss(task.forward(engine, micro_batch.to(ranks.device)))[0])
                engine.discard()
                for buffer, kept in zip(engine.module.buffers(), buffers, strict=True):
                    buffer.copy_(kept)
                results.append(_same(before, collect(engine, ranks)[0]))
            _train(engine, config, ranks, data, 4, step=2)
            ends.append(collect(engine, ranks)[0])
            engine.close()
        results.append(_same(*ends))
    return results


def bad_losses(ranks: Ranks, stages: list[int]) -> dict[str, Any]:
    """A sample with a NaN in steps 1, 3 and 4: left out with up to two in a row, else the end."""
    results = {}
    for stage in stages:
        found = {}
        for name, guard, spoiled, left_out in (
            ("two", {"bad_steps": 2}, {1, 3, 4}, []),
            ("one", {"bad_steps": 1}, {1, 3, 4}, []),
            ("without", {}, (), [1, 3, 4]),
        ):
            engine, config = _engine({"stage": stage, "guard": guard}, ranks)
            found[name] = _train(engine, config, ranks, TowerData(ranks, spoiled), 6, left_out=left_out)
            found[name]["weights"] = digest((f"{k}", t) for k, t in sorted(collect(engine, ranks)[0].items()))
            engine.close()
        results[str(stage)] = found
    return results


def bad_gradients(ranks: Ranks, cases: list[list[int]]) -> list[dict[str, Any]]:
    """A module whose backward pass gives NaN for one sample of step 2; for each (stage, bad steps allowed)."""
    results = []
    for stage, allowed in cases:
        engine, config = _engine({"stage": stage, "guard": {"bad_steps": allowed}}, ranks, SourTowers)
        results.append(_train(engine, config, ranks, TowerData(ranks, {2}, HUGE), 4))
        engine.close()
    return results


def spikes(ranks: Ranks, payload: dict[str, Any]) -> dict[str, Any]:
    """Train with checkpoints after steps 2, 4, 5 and 8; in step `at` the running mean is such that any loss is a spike,
    once.
    """
    results = {}
    for stage in payload["stages"]:
        folder = RunFolder(Path(payload["folder"]) / str(stage))
        engine, config = _engine({"stage": stage, "guard": {"spike": {"deviations": 3, "back": 1}}}, ranks)
        data, task = TowerData(ranks), ContrastiveTask(config, ranks)

        class Saves(Callback):
            def on_step(
                self, state: State, engine: Engine = engine, config: Any = config, folder: Any = folder
            ) -> None:
                if state.step == payload["at"] and not state.left_out:
                    state.loss_statistics = {"steps": 100, "mean": -5.0, "variance": 1.0}
                if state.step in (2, 4, 5, 8):
                    progress = Progress(state.step, state.samples, left_out=state.left_out)
                    state.checkpoint = save(engine, progress, folder.path, ranks, config)

        state = State(config, folder.path, ranks, 8)
        rate = lambda step, config=config: learning_rate(step, config)  # noqa: E731
        run_steps(task, engine, data, state, Saves(), rate)
        back = state.rollback
        assert back is not None
        progress = roll_back(config, folder, state, engine, ranks)
        left = [step_of(path) for path in step_dirs(folder.path)]
        again = State(config, folder.path, ranks, 8, progress.step, progress.samples, left_out=progress.left_out)
        losses = _Losses()
        run_steps(task, engine, data, again, Callbacks([losses, Saves()]), rate)
        end = collect(engine, ranks)[0]
        engine.close()
        engine, config = _engine({"stage": stage}, ranks)
        straight = _train(engine, config, ranks, data, 8, left_out=back.steps)
        results[str(stage)] = {
            "step": state.step, "checkpoint": back.checkpoint.name, "left_out": back.steps, "left": left,
            "losses": losses.found, "same": _same(end, collect(engine, ranks)[0]), "straight": straight["losses"],
            "samples": again.samples,
        }  # fmt: skip
        engine.close()
    return results


def traces(ranks: Ranks, stages: list[int]) -> dict[str, str]:
    """From step 1 on each rank leaves out another module."""
    results = {}
    for stage in stages:
        engine, config = _engine({"stage": stage, "guard": {"trace": True}}, ranks)
        _train(engine, config, ranks, TowerData(ranks), 1)
        engine.module.skip = {"image_mixer" if ranks.rank else "text_mixer"}
        results[str(stage)] = _train(engine, config, ranks, TowerData(ranks), 2, step=1)["error"]
        engine.close()
    return results


def all_cases(ranks: Ranks, payload: dict[str, Any]) -> None:
    """Every case, its results in a file of each rank, and the hang that ends the ranks as the last."""
    folder = Path(payload["folder"])
    results = {name: globals()[name](ranks, argument) for name, argument in payload["cases"].items()}
    (folder / f"{ranks.rank}.json").write_text(json.dumps(results))
    hangs(ranks, folder)


class _Sleepy(TowerData):
    """Data that keeps rank 1 waiting in step 2 (its fetch is in step 1), until `wake` is there."""

    def __init__(self, ranks: Ranks, wake: Path) -> None:
        super().__init__(ranks)
        self.wake = wake

    def _batch(self, step: int, micro: int) -> Batch:
        if step == 2 and micro == 0:
            _wait_on_rank_1(self.ranks, self.wake)
        return super()._batch(step, micro)


def _wait_on_rank_1(ranks: Ranks, wake: Path) -> None:
    while ranks.rank == 1 and not wake.exists():
        threading.Event().wait(0.02)


def hangs(ranks: Ranks, place: Path) -> None:
    """Rank 1 sleeps in its data until the hang is reported, the same in a module under ZeRO-3; then for ever."""
    for name, stage in (("data", 1), ("module", 3), ("stop", 1)):
        folder = RunFolder(place / name)
        settings = {"hang_seconds": 1.0, "slow_seconds": 60.0, "on_hang": "stop" if name == "stop" else "report"}
        zero = {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0} if stage == 3 else {}
        engine, config = _engine({"stage": stage, "guard": settings, "zero": zero}, ranks)
        where = folder.hangs / "step-00000002" / "where.txt"
        wake = place / "never" if name == "stop" else where
        with Watchdog(config.guard, folder, ranks) as watchdog:
            watchdog.know(engine.module)
            data: TowerData = _Sleepy(ranks, wake) if name != "module" else TowerData(ranks)
            if name == "module":
                calls = iter(range(100))

                def sleep(module: nn.Module, inputs: Any, wake: Path = wake, calls: Any = calls) -> None:
                    if next(calls) == 2:  # the first micro-batch of the second step
                        _wait_on_rank_1(ranks, wake)

                engine.module.text_mixer.norm.register_forward_pre_hook(sleep)
            state = State(config, folder.path, ranks, 4)
            run_steps(ContrastiveTask(config, ranks), engine, data, state, watchdog, lambda step: 1e-3)
        engine.close()


def whole(ranks: Ranks, folder: str) -> None:
    """A run of the trainer that learns next to nothing, so that a third of its losses are spikes."""
    config = Config.model_validate(
        {
            "model": {
                "image": "metanet_debug", "image_size": 64, "embed_dim": 16,
                "text": {"width": 32, "layers": 1, "heads": 2, "context_length": 12},
            },
            "data": {"lanes": 4, "shuffle_window": 64, "workers": 0},
            "train": {"steps": 30, "global_batch": 8, "precision": "fp32", "threads": 1}, "optim": {"lr": 1e-6},
            "checkpoint": {"every": 2}, "log": {"every": 1}, "evaluate": {"validation": {}, "test": {}},
            "guard": {"spike": {"deviations": 0.5, "back": 1}},
        }
    )  # fmt: skip
    train(config, Path(folder))
