"""How long a save holds up training: written in the background against at once, of a state that is made up.

One process, tensors on the GPU where there is one. The blocking save is the one that the background save's thread does,
straight from the state. The second background save is the one that counts: the first takes the memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from intern_trainer.checkpoint import Progress, Saver
from intern_trainer.config.load import load_config
from intern_trainer.ranks import Ranks, init_ranks
from intern_trainer.slices import OPTIM, PARAM, Slice

from benchmarks.results import save

TENSORS, KINDS = 16, (PARAM, OPTIM + "exp_avg", OPTIM + "exp_avg_sq")


class MadeUp:
    """What a save asks of an engine: weights and two moments, of `count` elements together."""

    def __init__(self, count: int, device: torch.device) -> None:
        each = count // TENSORS // len(KINDS)
        self.state = {(kind, f"w{i}"): torch.randn(each, device=device) for kind in KINDS for i in range(TENSORS)}

    def slices(self) -> Iterator[Slice]:
        for (kind, name), tensor in self.state.items():
            yield Slice(kind, name, tuple(tensor.shape), 0, tensor)

    def scalars(self) -> dict[str, Any]:
        return {}


def seconds_of(background: str, engine: MadeUp, folder: Path, ranks: Ranks, repeats: int) -> list[dict[str, float]]:
    """Of each save: for how long the call held up its caller (`waits`), and until it was complete."""
    config = load_config(overrides=[f"checkpoint.background={background}", "checkpoint.keep_last=1"])
    saver, found = Saver(engine, folder, ranks, config), []
    for step in range(1, repeats + 1):
        began = time.perf_counter()
        saver.save(Progress(step))
        waited = time.perf_counter() - began
        saver.finish()
        found.append({"waits": round(waited, 4), "complete": round(time.perf_counter() - began, 4)})
    saver.close()
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks saves", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="of the state (default 400)")
    parser.add_argument("--repeats", type=int, default=4, help="saves of each kind (default 4)")
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    chosen = parser.parse_args(arguments)
    ranks = init_ranks()
    engine = MadeUp(chosen.megabytes * 1_000_000 // 4, ranks.device)
    figures: dict[str, Any] = {"megabytes": chosen.megabytes}
    for background in ("never", "always"):
        with TemporaryDirectory(dir=chosen.folder) as folder:
            found = seconds_of(background, engine, Path(folder), ranks, chosen.repeats)
        figures[background] = found
        best = min(found[1:] or found, key=lambda one: one["waits"])
        print(f"checkpoint.background={background}: training waits {best['waits']:.3f} s, "
              f"complete after {best['complete']:.3f} s; the first: {found[0]['waits']:.3f} s")  # fmt: skip
    print(f"written: {save('saves', figures)}")
    return 0
