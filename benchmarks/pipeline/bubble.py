"""How long the ranks of a pipeline wait for each other, where a pass takes a fixed time, computing nothing: ours, and
torch's `distributed.pipelining` as the peer, by turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from intern_trainer.parallel.grid import Grid, make_grid
from intern_trainer.parallel.pipeline import Pipeline
from intern_trainer.parallel.schedule import bubble
from intern_trainer.parallel.transport import Carry
from intern_trainer.ranks import Ranks
from torch import Tensor, nn
from torch.distributed import pipelining

SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved": 2}
"""Name -> pieces of the model a rank."""
WIDTH = 8


class Clock:
    """Seconds that this rank spent in passes."""

    def __init__(self) -> None:
        self.busy = 0.0

    def wait(self, seconds: float) -> None:
        began = time.perf_counter()
        time.sleep(seconds)
        self.busy += time.perf_counter() - began


class Pass(torch.autograd.Function):
    """Forward `seconds`, backward twice as long, as products take."""

    @staticmethod
    def forward(ctx: Any, x_bc: Tensor, clock: Clock, seconds: float) -> Tensor:
        ctx.clock, ctx.seconds = clock, seconds
        clock.wait(seconds)
        return x_bc.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.wait(2 * ctx.seconds)
        return grads[0].contiguous(), None, None  # torch's stages cannot send the gradient of a sum as it is


class Piece(nn.Module):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))
        self.clock, self.seconds = clock, seconds

    def forward(self, x_bc: Tensor) -> Tensor:
        return Pass.apply(x_bc + self.weight, self.clock, self.seconds)


def work(ranks: Ranks, given: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each schedule and each number of micro-batches in `given`; `seconds` is that of a rank's forward
    pass through all of its pieces.
    """
    rows = []
    for schedule, chunks in SCHEDULES.items():
        grid = make_grid(ranks, ranks.world_size, chunks)
        for count in given["micro_batches"]:
            clock = Clock()
            pieces = [Piece(clock, given["seconds"] / chunks) for _ in range(chunks)]
            runs = [ours(grid, schedule, pieces, count), peer(grid, schedule, pieces, count)]
            steps = [timed(ranks, run, clock) for _ in range(given["repeats"] + 1) for run in runs][len(runs) :]
            rows.append(row(schedule, ranks.world_size, chunks, count, steps[0::2], steps[1::2]))
    return rows


def ours(grid: Grid, schedule: str, pieces: list[Piece], count: int) -> Callable[[], None]:
    pipeline = Pipeline(grid, schedule, len(pieces))

    def forward(piece: int, micro: int, received: Carry) -> Carry | Tensor:
        y_bc = pieces[piece // grid.stages](received.get("x", torch.zeros(1, WIDTH)))
        return y_bc.sum() if piece == pipeline.last else {"x": y_bc}

    return lambda: pipeline.train(count, forward)


def peer(grid: Grid, schedule: str, pieces: list[Piece], count: int) -> Callable[[], None]:
    total, group, device = grid.stages * len(pieces), grid.pipe.group, torch.device("cpu")
    stages = [
        pipelining.PipelineStage(piece, grid.stage + i * grid.stages, total, device, group=group)
        for i, piece in enumerate(pieces)
    ]
    run: Any
    if schedule == "interleaved":
        run = pipelining.ScheduleInterleaved1F1B(stages, count, loss_fn=_sum)  # type: ignore[arg-type]
    else:
        kind = pipelining.Schedule1F1B if schedule == "1f1b" else pipelining.ScheduleGPipe
        run = kind(stages[0], count, loss_fn=_sum)
    inputs = (torch.zeros(count, WIDTH),) if grid.stage == 0 else ()
    target = {"target": torch.zeros(count, WIDTH)} if grid.is_last else {}
    return lambda: run.step(*inputs, **target)


def _sum(y_bc: Tensor, _: Tensor) -> Tensor:
    return y_bc.sum()


def timed(ranks: Ranks, run: Callable[[], None], clock: Clock) -> tuple[float, float]:
    """Seconds of a step on the slowest rank, and those that a rank spent in passes, on average. Collective."""
    clock.busy = 0.0
    ranks.barrier()
    began = time.perf_counter()
    run()
    took = torch.tensor([time.perf_counter() - began, clock.busy])
    longest, mean = took.clone(), took.clone()
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    dist.all_reduce(mean)
    return float(longest[0]), float(mean[1]) / ranks.world_size


def row(
    schedule: str,
    stages: int,
    chunks: int,
    micro_batches: int,
    ours: list[tuple[float, float]],
    torchs: list[tuple[float, float]],
) -> dict[str, Any]:
    """Medians of (seconds of a step, seconds in passes)."""
    own, other = (statistics.median(seconds for seconds, _ in steps) for steps in (ours, torchs))
    return {
        "schedule": schedule,
        "stages": stages,
        "chunks": chunks,
        "micro_batches": micro_batches,
        "bubble": bubble(stages, chunks, micro_batches),
        "idle": _idle(ours),
        "torch_idle": _idle(torchs),
        "seconds": own,
        "torch_seconds": other,
        "seconds_over_torch": own / other,
    }


def _idle(steps: list[tuple[float, float]]) -> float:
    return statistics.median(1 - busy / seconds for seconds, busy in steps)
