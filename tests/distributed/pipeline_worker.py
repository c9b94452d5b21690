"""What the ranks of the pipeline's tests do. Many cases in one process group: start-up costs more than a case."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from intern_trainer import checkpoint
from intern_trainer.batch import Batch
from intern_trainer.callbacks import Callbacks
from intern_trainer.config.guard import Guard
from intern_trainer.config.schema import Config, Model, Parallel
from intern_trainer.engine import Engine, build_engine
from intern_trainer.loop import run_steps as run_loop
from intern_trainer.optim import learning_rate
from intern_trainer.parallel import Placement, make_grid
from intern_trainer.ranks import Ranks
from intern_trainer.state import State
from intern_trainer.steps import accumulate
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_zoo.chain import links

from tests.distributed.towers import make_config

Case = dict[str, Any]
WORDS, PIXELS = 16, 32


def case_config(case: Case) -> Config:
    """The real towers at debug size."""
    image = {"norm": case.get("norm", "batch"), "drop_path_rate": case.get("drop_path", 0.0)}
    config = make_config(
        train={
            "steps": 20,
            "global_batch": 8,
            "micro_batch": None if "sizes" in case else 8 // case["data"] // case["micro_batches"],
            "precision": case.get("precision", "fp32"),
            "cached_micro_batches": case.get("together"),
            "ema_decay": case.get("ema_decay"),
            "seed": 3,
        },
        optim={"lr": 1e-4, "eps": 1e-4, "clip_grad_norm": case.get("clip", 0.5), "schedule": {"warmup_steps": 3}},
        ds={"zero_optimization": {"stage": case["stage"], **case.get("zero", {})}},
    )
    model = {
        "image": "metanet_debug",
        "image_options": image,
        "image_size": PIXELS,
        "embed_dim": 32,
        "text": {"width": 32, "layers": 2, "heads": 2, "context_length": WORDS},
        "freeze": case.get("freeze", []),
    }
    names = ("pipeline", "chunks", "schedule", "recompute")
    parallel = Parallel(**{name: case[name] for name in names if name in case})
    return config.model_copy(update={"model": Model.model_validate(model), "parallel": parallel})


def build(config: Config, ranks: Ranks, tied: bool = False) -> torch.nn.Module:
    """At temperature 1, so that the roundings of bf16 features are not multiplied by 14; `tied`: the two blocks of the
    text tower share their MLP.
    """
    towers = ContrastiveTask(config, ranks).build_model()
    torch.nn.init.zeros_(towers.logit_scale)
    if tied:
        first, second = towers.text.transformer.resblocks
        second.mlp = first.mlp
    return towers


def sizes(case: Case) -> list[int]:
    """Samples of each global micro-batch of a step."""
    return case.get("sizes", [8 // case["micro_batches"]] * case["micro_batches"])


def make_batch(step: int, number: int, size: int) -> Batch:
    """The global micro-batch: noise, and random words that end as the tokenizer ends them."""
    generator = torch.Generator().manual_seed(1000 * step + number)
    text = torch.randint(1, 49000, (size, WORDS), generator=generator)
    text[:, -1] = 49407
    return Batch({"image": torch.randn(size, 3, PIXELS, PIXELS, generator=generator), "text": text}, [""] * size)


def rows(batch: Batch, rank: int, size: int) -> Batch:
    return Batch({name: x[rank * size : (rank + 1) * size] for name, x in batch.tensors.items()}, [""] * size)


def even(count: int, pieces: int) -> tuple[int, ...]:
    return tuple(count * (i + 1) // pieces - count * i // pieces for i in range(pieces))


def train(ranks: Ranks, cases: list[Case]) -> list[dict[str, Any]]:
    """Losses and gradient norms of each case; on every rank the same."""
    results = []
    for case in cases:
        config = case_config(case)
        engine, task = start(case, config, ranks)
        losses, norms = run_steps(case, config, engine, task, range(case.get("steps", 20)))
        engine.eval()
        with torch.no_grad():
            out = engine(image=make_batch(0, 0, 3).tensors["image"])
        results.append({"losses": losses, "norms": norms, "features": out.image_features.float().flatten().tolist()})
        engine.close()
    return results


def start(case: Case, config: Config, ranks: Ranks) -> tuple[Engine, ContrastiveTask]:
    chunks, text = case.get("chunks", 1), case.get("text", "last")
    grid = make_grid(ranks, case["pipeline"], chunks)
    make = partial(build, config, ranks, case.get("tied", False))
    cut = even(len(links(make(), text)), case["pipeline"] * chunks)
    place = Placement(grid, cut, chunks, text, case.get("schedule", "1f1b"))
    return build_engine(config, ranks, make, place), ContrastiveTask(config, grid.data)


def run_steps(
    case: Case, config: Config, engine: Engine, task: ContrastiveTask, steps: range
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms."""
    engine.train()
    losses, norms = [], []
    for step in steps:
        whole = [make_batch(step, number, size) for number, size in enumerate(sizes(case))]
        engine.accumulate(len(whole), step)
        mine = [rows(batch, engine.ranks.rank, len(batch) // case["data"]) for batch in whole]
        means = accumulate(task, engine, mine, case.get("together", 1), torch.device("cpu"))
        result = engine.step(learning_rate(step, config))
        found = engine.ranks.gather(float(means["loss"]))
        losses.append(sum(found) / len(found))
        norms.append(result.grad_norm)
    return losses, norms


class Data:
    """What the loop reads. The second sample of the second micro-batch of step 1 has a pixel that is not a number."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        for number in count(step):
            made = [make_batch(number, micro, size) for micro, size in enumerate(sizes(self.case))]
            if number == 1:
                made[1].tensors["image"][1, 0, 3, 3] = math.nan
            for micro, batch in enumerate(made):
                batch.ids[:] = [f"{number}-{micro}/{row}" for row in range(len(batch))]
            yield made


def poisoned(ranks: Ranks, case: Case) -> dict[str, Any]:
    """A run over a spoiled sample: how many steps were left out, what the log said of it, the loss of the last one."""
    config = case_config(case).model_copy(update={"guard": Guard(bad_steps=1)})
    engine, task = start(case, config, ranks)
    state, said = State(config, Path(), ranks, 3), list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("intern_trainer").addHandler(handler)
    run_loop(task, engine, Data(case), state, Callbacks([]), lambda step: learning_rate(step, config))
    return {"bad": state.bad_steps, "said": said, "loss": state.metrics["loss"]}


def leg(ranks: Ranks, plan: dict[str, Any]) -> list[float]:
    """Go on from the run's newest checkpoint over some steps in the layout of `plan["case"]`, and save."""
    case, run = plan["case"], Path(plan["run"])
    config = case_config(case)
    engine, task = start(case, config, ranks)
    newest = checkpoint.newest_good(run, ranks)
    first = checkpoint.load(engine, newest, ranks).step if newest else 0
    losses, norms = run_steps(case, config, engine, task, range(first, plan["until"]))
    progress = checkpoint.Progress(plan["until"], 8 * plan["until"], 1.0, losses[-1], norms[-1])
    checkpoint.save(engine, progress, run, ranks, config)
    engine.close()
    return losses
