"""What one file of tests must not leave behind for the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(autouse=True, scope="module")
def _no_process_group_stays() -> Iterator[None]:
    """Tests that train in this process join a group of one rank; others test how a group is made."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
