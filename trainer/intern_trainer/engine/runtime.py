"""DeepSpeed itself: imported once, quiet, and kept from running a compiler at the start."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from typing import Any

import torch


@functools.cache
def load_deepspeed() -> Any:
    """The deepspeed module, ready to be used on the process group that `init_ranks` made.

    On CPU, DeepSpeed builds a shared-memory collective (`deepspeed_shm_comm`) with the C++ compiler at every start,
    30 s and more; only its inference uses it. It is marked as not available here, so nothing is compiled unless an
    optimizer is chosen that needs it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said here, it is not warned about
    # DeepSpeed calls some of torch's older names; its users can do nothing about that
    warnings.filterwarnings(
        "ignore", message=".*all_gather_into_tensor.*|.*reduce_scatter_tensor.*", category=FutureWarning
    )
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_init_required=False, auto_mpi_discovery=False)
    return deepspeed
