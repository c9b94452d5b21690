"""Places read off stacks, running means, and what the watchdog says."""

from __future__ import annotations

import json
import statistics
import threading
import time
from pathlib import Path

import pytest
import torch
from intern_trainer.config.guard import Guard
from intern_trainer.guard.spikes import WINDOW, followed, is_spike
from intern_trainer.guard.watchdog import Watchdog, _listed
from intern_trainer.observe.places import Place, place, place_of
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder
from torch import nn

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


class Waits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = threading.Event(), threading.Event()

    def forward(self, x: int) -> None:
        self.inside.set()
        self.go_on.wait(60)


@place("outer")
def outer(module: nn.Module) -> None:
    inner(module)


@place("inner")
def inner(module: nn.Module) -> None:
    module(0)


def test_a_place_has_words_and_the_innermost_module() -> None:
    model = nn.Sequential(Waits())
    names = {id(module): name for name, module in model.named_modules() if name}
    thread = threading.Thread(target=outer, args=(model,))
    thread.start()
    assert model[0].inside.wait(60)
    bare, full = place_of(thread.ident or 0), place_of(thread.ident or 0, names)
    model[0].go_on.set()
    thread.join()
    assert bare == Place(("outer", "inner"))
    assert full == Place(("outer", "inner"), None, "0")
    assert str(full) == "inner of 0 (outer)"
    assert str(Place(("forward",), "all_gather", "blocks.17")) == "all_gather of blocks.17 (forward)"
    assert str(place_of(thread.ident or 0)) == "nothing"


def test_the_running_mean_is_the_plain_one_at_first_and_then_fades() -> None:
    losses = [5.0, 4.0, 4.5, 3.0, 3.5]
    known: dict[str, float] = {}
    for loss in losses:
        known = followed(loss, known)
    assert known["mean"] == pytest.approx(statistics.fmean(losses))
    assert known["variance"] == pytest.approx(statistics.pvariance(losses))
    for _ in range(2000):
        known = followed(1.0, known)
    assert known["mean"] == pytest.approx(1.0, abs=1e-6)


def test_a_spike_is_far_above_and_never_judged_cold() -> None:
    known = {"steps": WINDOW, "mean": 2.0, "variance": 0.25}
    assert is_spike(4.1, known, 4)
    assert not is_spike(3.9, known, 4)
    assert not is_spike(-9.0, known, 4)
    assert not is_spike(99.0, {**known, "steps": WINDOW - 1}, 4)
    assert not is_spike(99.0, {}, 4)


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([0, 1, 2], "ranks 0-2"), ([0, 2, 3, 7], "ranks 0,2-3,7")]
)
def test_ranks_are_listed_in_spans(ranks: list[int], text: str) -> None:
    assert _listed(ranks) == text


def test_who_waits_for_whom_comes_first_and_a_rank_without_heartbeat_is_told_from_its_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.heartbeat.mkdir()
    watchdog = Watchdog(Guard(), folder, Ranks(0, 6, 0, torch.device("cpu")))
    places = ["all_reduce (agree)", "data.next", "backward", "data.next", "all_reduce (agree)"]
    for rank, where in enumerate(places):
        known = {"place": where, "waits": "all" in where, "hang": -1 if rank == 2 else 12}
        (folder.heartbeat / f"rank-{rank}").write_text(json.dumps(known))
    assert watchdog._told(12) == [0, 1, 3, 4]
    assert watchdog._line(12, "9.0 s") == (
        "step 12 hangs, 9.0 s so far: rank 2 without heartbeat, last in backward, "
        "rank 5 without heartbeat, last in nothing, ranks 1,3 in data.next, ranks 0,4 in all_reduce (agree)"
    )


def test_a_start_that_hangs_is_reported_once_and_ends_where_it_must(tmp_path: Path) -> None:
    codes: list[int] = []
    settings = Guard(hang_seconds=0.1, slow_seconds=0.1, on_hang="stop")
    with Watchdog(settings, RunFolder(tmp_path), ALONE, codes.append) as watchdog:
        watchdog._thread.join(0.0)
        deadline = time.monotonic() + 60
        while not codes and time.monotonic() < deadline:
            threading.Event().wait(0.01)
    assert codes == [8]
    assert "rank 0 in " in (tmp_path / "hangs/step-00000000/where.txt").read_text()
    assert "Current thread" in (tmp_path / "hangs/step-00000000/rank-0.txt").read_text()
    assert json.loads((tmp_path / "heartbeat/rank-0").read_text())["hang"] == 0
