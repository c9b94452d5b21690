"""The local loss of a global batch and the figures of a probe do not depend on how many ranks they are cut over."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.spawn import run_ranks


def test_two_ranks_have_the_loss_of_one() -> None:
    worker = "tests.distributed.local_worker:loss_and_gradients"
    [alone], pair = (run_ranks(worker, ranks=ranks, timeout=300) for ranks in (1, 2))
    for part in pair:
        for name, expected in alone.items():
            torch.testing.assert_close(torch.tensor(part[name]), torch.tensor(expected), rtol=1e-5, atol=1e-7)
    for name in ("points0", "points1", "image_features"):
        assert torch.tensor(alone[name]).abs().max() > 1e-3


@pytest.mark.slow
def test_two_ranks_probe_what_one_probes() -> None:
    worker = "tests.distributed.local_worker:probes"
    [alone], pair = (run_ranks(worker, ranks=ranks, timeout=400) for ranks in (1, 2))
    for part in pair:
        for task in ("segmentation", "detection"):
            assert part[task] == pytest.approx(alone[task], abs=1e-4), task
    assert alone["segmentation"]["mIoU"] > 0
