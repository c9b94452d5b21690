"""What the pipeline's benchmark makes of its measurements: medians and ratios, elements of a gather, what is whole."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace

import pytest
import torch

from benchmarks.pipeline import gathers_table
from benchmarks.pipeline.bubble import row
from benchmarks.pipeline.gathers import largest, whole


class Status(Enum):
    AVAILABLE, NOT_AVAILABLE, INFLIGHT = range(3)


def test_idle_shares_are_of_each_step_and_times_are_medians() -> None:
    ours, torchs = [(1.0, 0.8), (4.0, 0.4), (2.0, 1.0)], [(1.0, 0.5)] * 3
    found = row("1f1b", 2, 1, 4, ours, torchs)
    assert found["bubble"] == pytest.approx(1 / 5)
    assert (found["idle"], found["torch_idle"]) == pytest.approx((0.5, 0.5))
    assert found["seconds_over_torch"] == pytest.approx(2.0)


def test_a_gather_makes_its_largest_tensor_or_list() -> None:
    part = torch.zeros(3)
    assert largest([torch.zeros(6), part, None]) == 6
    assert largest([[part, part, part], part]) == 9


def test_whole_is_what_has_a_buffer() -> None:
    shared_out = [SimpleNamespace(ds_numel=10**k, ds_status=status) for k, status in enumerate(Status)]
    assert whole(shared_out) == 1 + 100
    assert whole([torch.zeros(5), torch.zeros(2)]) == 7


def test_the_table_shows_each_stage() -> None:
    stages = [{"gathered": 2.0, "whole": 0.25}, {"gathered": 8.0, "whole": 0.2}]
    table = gathers_table([{"case": "ZeRO-3", "schedule": "1f1b", "micro_batches": 4, "stages": stages}])
    assert table.splitlines()[-1] == "| ZeRO-3 | 1f1b | 4 | 2.00, 8.00 | 25%, 20% |"
