"""Cases of the loop and the evaluation that run on several ranks; `test_loop_ranks.py` judges what they return."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from intern_trainer import evaluate
from intern_trainer.batch import Batch
from intern_trainer.callbacks import Callback
from intern_trainer.config.schema import Benchmark, Config
from intern_trainer.errors import DataError, UserError
from intern_trainer.evaluate import retrieval, samples, zero_shot
from intern_trainer.evaluate.features import first_row, gather_rows
from intern_trainer.evaluate.samples import sample_captions
from intern_trainer.loop import run_steps
from intern_trainer.ranks import Ranks
from intern_trainer.state import State
from torch import Tensor, nn

from tests.unit.trainer.doubles import LineData, LineTask, PlainEngine

SAMPLES, CLASSES = 10, ["ant", "bee", "cat"]


class Towers(nn.Module):
    """Features that depend on the input only; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image = nn.Parameter(torch.randn(3 * 4 * 4, 6, generator=generator))
        self.text = nn.Parameter(torch.randn(8, 6, generator=generator))
        self.calls = 0

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> SimpleNamespace:
        self.calls += 1
        normal = torch.nn.functional.normalize
        return SimpleNamespace(
            image_features=None if image is None else normal(image.flatten(1) @ self.image, dim=1),
            text_features=None if text is None else normal(text.double().sin().float() @ self.text, dim=1),
            logit_scale=torch.full((1,), 10.0),
        )


class Pairs:
    """This rank's share of ten fixed pairs, in batches of two: of three ranks one has four pairs."""

    def __init__(self, sources: Any, config: Config, ranks: Ranks, fail_on: int | None = None) -> None:
        self.ranks, self.fails = ranks, fail_on == ranks.rank

    def __iter__(self) -> Iterator[Batch]:
        pictures = torch.rand(SAMPLES, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        mine = list(range(self.ranks.rank, SAMPLES, self.ranks.world_size))
        for start in range(0, len(mine), 2):
            if self.fails:
                raise DataError("test-00000.tar ends in the middle of a picture")
            rows = mine[start : start + 2]
            extras = {"caption": [f"caption {i}" for i in rows], "category": [CLASSES[i % 3] for i in rows]}
            yield Batch({"image": pictures[rows]}, [f"pairs/{i}" for i in rows], extras)

    def agree(self) -> None:
        self.ranks.barrier()  # a collective, as the real one's is


def config() -> Config:
    return Config.model_validate(
        {
            "model": {"image_size": 4, "embed_dim": 6, "text": {"context_length": 8}},
            "train": {"steps": 4, "global_batch": 4, "precision": "fp32"},
        }
    )


BENCHMARK = Benchmark.model_validate(
    {"zero_shot": {"data": "embedded:test", "templates": "simple"}, "retrieval": {"data": "embedded:test"}}
)


def _use(pairs: Any) -> None:
    for module in (retrieval, zero_shot, samples):
        module.data = SimpleNamespace(pairs=pairs)
    zero_shot.embedded = SimpleNamespace(categories=lambda: CLASSES, PROMPTS={})


def evaluation(ranks: Ranks, payload: Any) -> dict[str, Any]:
    """Results, calls of the model, gathered rows, sample captions, and the error that all ranks get from one rank's
    data."""
    _use(Pairs)
    towers = Towers()
    results = evaluate.run(towers, BENCHMARK, config(), ranks)
    calls = towers.calls
    mine = torch.arange(ranks.rank * 2.0)[:, None]  # 0, 2, 4 rows
    gathered, start = gather_rows(mine, ranks).flatten().tolist(), first_row(len(mine), ranks)
    captions = sample_captions(towers, BENCHMARK.retrieval[0], config(), ranks, pictures=6)
    pictures = [[row["id"], row["caption"], row["top"]] for row in captions["pictures"]]
    _use(lambda *given: Pairs(*given, fail_on=ranks.world_size - 1))
    try:
        evaluate.run(towers, BENCHMARK, config(), ranks)
        error = ""
    except UserError as failure:
        error = str(failure)
    return {
        "results": results, "calls": calls, "gathered": gathered, "start": start, "training": towers.training,
        "candidates": captions["candidates"], "pictures": pictures, "error": error,
    }  # fmt: skip


class _Spoiled(LineData):
    """Data of which one rank's part goes wrong at step 2."""

    def __init__(self, ranks: Ranks, how: str) -> None:
        super().__init__(batch=2, spoil=self._at_step_2)
        self.bad_rank, self.how = ranks.rank == 1, how

    def _at_step_2(self, step: int, micro_batches: list[Batch]) -> None:
        if step != 2 or not self.bad_rank:
            return
        if self.how == "error":
            raise DataError("more bad samples than data.max_bad_fraction allows")
        if self.how == "bug":
            raise KeyError("image")
        if self.how == "nan":
            micro_batches[0].tensors["y"][0] = float("nan")


def loops(ranks: Ranks, payload: Any) -> dict[str, Any]:
    """What each rank's loop came to when one rank's data fails, gives NaN, or one rank is asked to stop."""
    outcome: dict[str, Any] = {}
    for how in ("error", "bug", "nan", "stop", "fine"):
        state = State(config(), Path(), ranks, 4)
        stop = (
            (lambda state=state: "SIGUSR1" if ranks.rank == 1 and state.step == 1 else None) if how == "stop" else None
        )
        try:
            data = _Spoiled(ranks, how)
            options = {"stop_requested": stop} if stop else {}
            run_steps(LineTask(), PlainEngine(), data, state, Callback(), lambda _: 0.1, **options)
            ended = "ok"
        except Exception as error:
            ended = f"{type(error).__name__}: {error}"
        outcome[how] = {
            "ended": ended,
            "step": state.step,
            "stop": state.stop_reason,
            "loss": state.metrics.get("loss"),
        }
    return outcome
