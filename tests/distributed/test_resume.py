"""A checkpoint on disk, written under one ZeRO stage and number of ranks, goes on under any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.spawn import run_ranks

WORKER = "tests.distributed.resume_worker:write_and_read"


def test_any_stage_and_number_of_ranks_goes_on_from_any_other(tmp_path: Path) -> None:
    same = [(stage, stage) for stage in range(4)]
    other = [(0, 3), (3, 1), (1, 2)]
    payload = {"folder": str(tmp_path), "write": [0, 1, 2, 3], "read": same + other}
    [two, _] = run_ranks(WORKER, ranks=2, payload=payload)
    written = {int(stage): result for stage, result in two["written"].items()}
    for stage, result in written.items():
        assert result["weights"] == result["live"], stage  # the reader's weights are the engine's, to the bit
        assert not result["complete_before"], stage  # it was written while training went on
    for (wrote, _), result in zip(same, two["read"], strict=False):
        assert result == {
            "step": 3,
            "losses": written[wrote]["losses"],
        }  # and so are the losses, where the layout is the same
    for (wrote, _), result in zip(other, two["read"][len(same) :], strict=True):
        assert result["losses"] == pytest.approx(written[wrote]["losses"], rel=1e-5)
    pairs = [(1, 0), (3, 3)]
    [one] = run_ranks(WORKER, ranks=1, payload={"folder": str(tmp_path), "read": pairs})
    for (wrote, _), result in zip(pairs, one["read"], strict=True):
        assert result["losses"] == pytest.approx(written[wrote]["losses"], rel=1e-5)
