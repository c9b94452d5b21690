"""The CLIP loss of a global batch does not depend on how many ranks it is cut over."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.spawn import run_ranks

TARGET = "tests.distributed.contrastive_worker:loss_and_gradients"


@pytest.fixture(scope="module")
def whole() -> dict:
    return run_ranks(TARGET, ranks=1)[0]


@pytest.mark.parametrize("ranks", [2, 3])
def test_same_loss_and_gradients_on_any_number_of_ranks(whole: dict, ranks: int) -> None:
    for part in run_ranks(TARGET, ranks=ranks):
        for name, expected in whole.items():
            got, want = torch.tensor(part[name]), torch.tensor(expected)
            assert torch.allclose(got, want, rtol=1e-5, atol=1e-7), (name, (got - want).abs().max())
    assert whole["loss"] > 0.5
    assert max(abs(g) for row in whole["image"] for g in row) > 1e-3
