"""Stand-ins for the engine, the task and the data: a line fitted by plain SGD."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from intern_trainer.batch import Batch
from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.state import State
from torch import Tensor, nn

ONE_RANK = Ranks(0, 1, 0, torch.device("cpu"))


class StepResult:
    def __init__(self, grad_norm: float, applied: bool) -> None:
        self.grad_norm, self.applied = grad_norm, applied


class PlainEngine:
    """What the loop needs of an engine, in plain PyTorch. Refuses an update that is not finite, as the real one
    does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(2, 1)
        self.accumulation, self.rates, self.modes = 1, [], []
        self.forwards = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.module(x)

    def train(self) -> None:
        self.modes.append("train")

    def accumulate(self, micro_batches: int) -> None:
        self.accumulation = micro_batches

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, lr: float) -> StepResult:
        self.rates.append(lr)
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters()]))
        with torch.no_grad():
            for parameter in self.module.parameters():
                if math.isfinite(norm):
                    parameter -= lr * parameter.grad
                parameter.grad = None
        return StepResult(norm, math.isfinite(norm))

    def discard(self) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None


class LineTask:
    name = "line"

    shared: frozenset[str] = frozenset()

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {"error": model(x=batch.tensors["x"]) - batch.tensors["y"]}

    def loss(self, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        error = outputs["error"]
        return error.square().mean(), {"largest_error": error.detach().abs().max()}


class LineData:
    """Steps of `accumulation` micro-batches; `spoil` is called with (step, batch) before each is given away."""

    def __init__(self, batch: int = 4, accumulation: int = 1, spoil: Any = None) -> None:
        self.batch, self.accumulation, self.spoil = batch, accumulation, spoil
        self.asked: list[int] = []

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        while True:
            while step in left_out:
                step += 1
            self.asked.append(step)
            micro_batches = []
            for part in range(self.accumulation):
                generator = torch.Generator().manual_seed(step * 1000 + part)
                x = torch.randn(self.batch, 2, generator=generator)
                y = x @ torch.tensor([[2.0], [-1.0]]) + 0.5
                ids = [f"line/{step}-{part}-{row}" for row in range(self.batch)]
                micro_batches.append(Batch({"x": x, "y": y}, ids))
            if self.spoil:
                self.spoil(step, micro_batches)
            yield micro_batches
            step += 1


def make_state(run_dir: Path, steps: int = 5, **sections: Any) -> State:
    config = Config.model_validate({"train": {"steps": steps, "global_batch": 4, "precision": "fp32"}, **sections})
    return State(config, run_dir, ONE_RANK, steps)
