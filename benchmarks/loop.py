"""Our loop with DeepSpeed ZeRO-0 on one rank against a bare PyTorch loop: same model, same batches, same optimizer.

Batches lie decoded in memory, so the loader plays no part. Ours does all that a run does at a step: agreement over
ranks, records to metrics.jsonl and TensorBoard. The bare loop does what everybody writes: forward, loss, backward,
clip, step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from intern_trainer.batch import Batch
from intern_trainer.callbacks.records import Records
from intern_trainer.callbacks.sinks import JsonLines, TensorBoard
from intern_trainer.config.load import load_config
from intern_trainer.config.schema import Config
from intern_trainer.engine import build_engine
from intern_trainer.loop import run_steps
from intern_trainer.optim import learning_rate, parameter_groups
from intern_trainer.ranks import init_ranks
from intern_trainer.state import State
from intern_trainer.tasks import Task, build_task
from torch import nn

from benchmarks.results import save

BATCH, SIDE = 32, 64
GOAL = 0.95


class InMemory:
    """The same few batches over and over."""

    def __init__(self, config: Config, batches: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        length = config.model.text.context_length
        self.steps = [
            Batch(
                {
                    "image": torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(
                        memory_format=torch.channels_last
                    ),
                    "text": torch.randint(1, 49_000, (BATCH, length), generator=generator),
                },
                [f"memory/{number}-{row}" for row in range(BATCH)],
            )
            for number in range(batches)
        ]

    def batches(self, step: int, left_out: Collection[int] = ()) -> Iterator[list[Batch]]:
        while True:
            yield [self.steps[step % len(self.steps)]]
            step += 1


class BareLoop:
    """What everybody writes."""

    def __init__(self, config: Config, task: Task) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.task, self.step = config, task, 0
        self.model: nn.Module = task.build_model().to(memory_format=torch.channels_last).train()
        groups = [
            {"params": g["params"], "weight_decay": g["weight_decay"]} for g in parameter_groups(self.model, config)
        ]
        optim = config.optim
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)

    def run(self, data: InMemory, steps: int) -> None:
        for _, (batch,) in zip(range(steps), data.batches(self.step), strict=False):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.config)
            loss, _ = self.task.loss(self.task.forward(self.model, batch))
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks loop", description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="steps a repeat (default 40)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (default 5)")
    chosen = parser.parse_args(arguments)
    settings = [f"train.global_batch={BATCH}", f"model.image_size={SIDE}", f"train.steps={10**6}"]
    config = load_config(overrides=settings)
    ranks = init_ranks()
    task, data, bare = build_task(config, ranks), InMemory(config), None
    bare = BareLoop(config, task)
    engine = build_engine(config, ranks, task.build_model)
    ours, theirs = [], []
    with TemporaryDirectory() as folder:
        state = State(config, Path(folder), ranks, 0)

        def run_ours(steps: int) -> None:
            records = Records([JsonLines(Path(folder) / "metrics.jsonl"), TensorBoard(Path(folder) / "tensorboard")])
            state.total_steps = state.step + steps
            run_steps(task, engine, data, state, records, partial(learning_rate, config=config))

        run_ours(5)
        bare.run(data, 5)
        for _ in range(chosen.repeats):
            for run, speeds in ((run_ours, ours), (partial(bare.run, data), theirs)):
                started = time.perf_counter()
                run(chosen.steps)
                speeds.append(chosen.steps * BATCH / (time.perf_counter() - started))
    ratio = statistics.median(ours) / statistics.median(theirs)
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"ours      {statistics.median(ours):7.1f} images/s   {[round(s, 1) for s in ours]}")
    print(f"bare loop {statistics.median(theirs):7.1f} images/s   {[round(s, 1) for s in theirs]}")
    print(f"ratio of medians {ratio:.3f} (goal {GOAL}); of each pair {[round(p, 3) for p in pairs]}")
    figures = {
        "what": "images/s of our loop (DeepSpeed ZeRO-0, one rank) and of a bare PyTorch loop; batch 32, 64 px",
        "threads": torch.get_num_threads(),
        "steps_a_repeat": chosen.steps,
        "ours_images_per_second": ours,
        "bare_images_per_second": theirs,
        "ratio_of_medians": ratio,
        "ratio_of_each_pair": pairs,
        "goal": GOAL,
    }
    print(save("loop", figures))
    return 0 if ratio >= GOAL else 1
