"""An engine without a model, and ranks that are threads: the checkpoint code with nothing else around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from intern_trainer.checkpoint import Progress, save
from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.slices import Read, Slice
from torch import Tensor

State = dict[str, dict[str, Tensor]]


def fresh_state(seed: int = 0) -> State:
    """A small state with every kind, several types, a tensor of one element, an empty one, and -inf in a buffer."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"image.stem.weight": (7, 3, 3), "image.stem.bias": (7,), "text.proj": (5, 11), "logit_scale": (1,)}
    mask = torch.zeros(4, 4)
    mask[0, 1] = -torch.inf
    trained: State = {
        kind: {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
        for kind in ("param", "ema", "optim.exp_avg", "optim.exp_avg_sq")
    }
    return trained | {
        "frozen": {"text.table": torch.randn(6, 4, generator=g).bfloat16(), "text.none": torch.zeros(0, 3)},
        "buffer": {
            "image.norm.mean": torch.randn(7, generator=g),
            "image.norm.count": torch.tensor(41),
            "text.mask": mask,
        },
    }


class FakeEngine:
    """Holds the full state, and owns of it what `cut` gives this rank.

    Args:
        cut: "flat": every tensor is divided over the ranks, as ZeRO does; "whole": tensor i belongs to rank i % ranks.
    """

    def __init__(self, state: State, rank: int = 0, world_size: int = 1, cut: str = "flat") -> None:
        self.state, self.rank, self.world_size, self.cut = state, rank, world_size, cut
        self.values: dict[str, Any] = {"steps": 17, "scaler": {"scale": 1024.0}}
        self.loaded: dict[tuple[str, str, int], Tensor] = {}

    def _owned(self) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
        i = 0
        for kind, tensors in self.state.items():
            for name, tensor in tensors.items():
                i += 1
                n, size = self.world_size, tensor.numel()
                if self.cut == "flat":
                    step = -(-size // n)
                    start, end = min(self.rank * step, size), min((self.rank + 1) * step, size)
                    yield kind, name, tuple(tensor.shape), start, end - start
                elif i % n == self.rank:
                    yield kind, name, tuple(tensor.shape), 0, size

    def slices(self) -> Iterator[Slice]:
        for kind, name, shape, start, length in self._owned():
            flat = self.state[kind][name].reshape(-1)
            yield Slice(kind, name, shape, start, flat[start : start + length])

    def shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        kinds = ("param", "frozen", "buffer")
        return {(kind, name): tuple(t.shape) for kind in kinds for name, t in self.state[kind].items()}

    def scalars(self) -> dict[str, Any]:
        return self.values

    def load(self, read: Read, scalars: dict[str, Any]) -> None:
        self.values = scalars
        for kind, name, _, start, length in self._owned():
            self.loaded[kind, name, start] = read(kind, name, start, length)

    def loaded_as_saved(self, state: State) -> bool:
        return all(
            torch.equal(piece, state[kind][name].reshape(-1)[start : start + piece.numel()])
            for (kind, name, start), piece in self.loaded.items()
        )


class ThreadRanks(Ranks):
    """A rank that is a thread; its collectives pass objects through a shared list."""

    def __init__(self, rank: int, world_size: int, box: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, world_size, rank, torch.device("cpu"))
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "wait", barrier.wait)

    def gather(self, value: Any) -> list[Any]:
        self.box[self.rank] = value
        self.wait()
        values = list(self.box)
        self.wait()
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        return self.gather(value)[source]

    def all(self, holds: bool) -> bool:
        return all(self.gather(holds))

    def barrier(self) -> None:
        self.wait()


ALONE = Ranks(0, 1, 0, torch.device("cpu"))
CONFIG = Config()


def on_ranks(world_size: int, action: Callable[[Ranks], Any]) -> list[Any]:
    """Run `action` on that many ranks at once; what each returned, or the exception that it raised."""
    box: list[Any] = [None] * world_size
    results: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size, timeout=20)

    def run(rank: int) -> None:
        try:
            results[rank] = action(ThreadRanks(rank, world_size, box, barrier))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def save_on(world_size: int, run: Path, step: int = 10, cut: str = "flat", seed: int = 0) -> Path:
    """A checkpoint of `fresh_state(seed)` by that many ranks."""

    def one(ranks: Ranks) -> Path:
        engine = FakeEngine(fresh_state(seed), ranks.rank, ranks.world_size, cut)
        return save(engine, Progress(step, samples=step * 8), run, ranks, CONFIG)

    [path, *_] = on_ranks(world_size, one)
    assert isinstance(path, Path), path
    return path
