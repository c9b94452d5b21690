"""What keeps the ranks together at a step: one tiny sum tells each of them whether all is well; only when not do they
exchange words.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from intern_trainer.batch import Batch
from intern_trainer.errors import TrainingError, UserError
from intern_trainer.observe.places import place
from intern_trainer.ranks import Ranks


class HostClock:
    """From its making to `stop`."""

    def __init__(self) -> None:
        self._started = self._stopped = time.perf_counter()

    def stop(self) -> None:
        self._stopped = time.perf_counter()

    def seconds(self) -> float:
        return self._stopped - self._started


class GpuClock:
    """The time in which a GPU is idle between the making of the clock and `stop`: from the end of the work that was
    queued before. While it still works on that, nobody waits.
    """

    def __init__(self) -> None:
        self._started, self._stopped = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._started.record()

    def stop(self) -> None:
        self._stopped.record()

    def seconds(self) -> float:
        return self._started.elapsed_time(self._stopped) / 1e3


class Feed:
    """The micro-batches of the next step, fetched while the device still works on this one.

    An error of this rank's data is kept until all ranks know of it: raised at once, it would leave the others waiting
    in a collective.
    """

    def __init__(self, batches: Iterator[list[Batch]], device: torch.device) -> None:
        self._batches = batches
        self._clock = GpuClock if device.type == "cuda" else HostClock
        self._next: list[Batch] = []
        self.error: Exception | None = None
        self._waited: HostClock | GpuClock | None = None

    @place("data.next")
    def fetch(self) -> None:
        self._waited = self._clock()
        try:
            self._next = next(self._batches)
        except Exception as error:  # handed to all ranks by `agree`
            self.error = error
        self._waited.stop()

    @property
    def seconds(self) -> float:
        """How long the `fetch` since the last `take` kept the device waiting, 0 where there was none. Ask after the
        step's host sync.
        """
        return self._waited.seconds() if self._waited else 0.0

    def take(self) -> list[Batch]:
        taken, self._next, self._waited = self._next, [], None
        return taken


@dataclass(frozen=True)
class Agreement:
    """What all ranks know together: metrics averaged over ranks, why to stop (None: go on), and what is wrong with the
    loss (None: it is finite).
    """

    metrics: dict[str, float]
    stop_reason: str | None
    bad_loss: str | None


@place("agree")
def agree(
    ranks: Ranks, metrics: Mapping[str, Tensor], ids: list[str], stop: str | None, error: Exception | None
) -> Agreement:
    """Average this step's metrics over ranks, and agree on stopping. One collective of a few numbers, and one host
    sync.

    Args:
        metrics: 0-dim tensors, the same names on every rank; `loss` is one of them.
        ids: samples of this rank's step, to name them if their loss is not finite.
        stop: why this rank wants the run to end.
        error: what went wrong with this rank's data.

    Raises:
        UserError: another rank's or this rank's `error`, on all ranks.
    """
    flags = torch.tensor([stop is not None, error is not None], dtype=torch.float64).to(ranks.device, non_blocking=True)
    sums = torch.cat([flags, *(m.detach().double().reshape(1) for m in metrics.values())])
    if ranks.world_size > 1:
        dist.all_reduce(sums, group=ranks.group)
    stops, errors, *totals = sums.tolist()
    means = {name: total / ranks.world_size for name, total in zip(metrics, totals, strict=True)}
    if errors:
        _raise_shared(ranks, error)
    bad = None if math.isfinite(means.get("loss", 0.0)) else _not_finite(ranks, float(metrics["loss"]), ids)
    reason = next((r for r in ranks.gather(stop) if r), None) if stops else None
    return Agreement(means, reason, bad)


def _raise_shared(ranks: Ranks, error: Exception | None) -> None:
    """Raise the first rank's error on all ranks. An error that is a bug of ours keeps its stack trace on the rank
    that it is of.
    """
    told = error if error is None or isinstance(error, UserError) else None
    bug = None if error is None or told is not None else f"{type(error).__name__}: {error}"
    for rank, (theirs, their_bug) in enumerate(ranks.gather((told, bug))):
        if theirs is not None:
            raise theirs
        if their_bug is not None:
            if rank == ranks.rank and error is not None:
                raise error
            raise TrainingError(f"rank {rank} failed while reading data: {their_bug}")


def _not_finite(ranks: Ranks, loss: float, ids: list[str]) -> str:
    """The first rank whose loss is not finite, with its samples."""
    for rank, (theirs, their_ids) in enumerate(ranks.gather((loss, ids[:64]))):
        if not math.isfinite(theirs):
            shown = ", ".join(their_ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
            return f"the loss of rank {rank} is {theirs}; its samples: {shown}"
    return "the mean loss over ranks is not finite although each rank's loss is"
