"""Who am I among the processes of this run, however they were launched.

`python`, `torchrun`, DeepSpeed's launcher and `srun` (one task a rank) all end in the same `Ranks`. The process group
is made here and only here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from intern_trainer.errors import EnvironmentFault


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run, or among those of one group (see `parallel.grid`).

    Attributes:
        rank, world_size: among them. local_rank: on its machine. group: None for all processes.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value that rank `source` passed, on every rank (a small picklable object of our own making)."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.of_run(source), group=self.group)
        return box[0]

    def of_run(self, rank: int) -> int:
        """The number among all processes of the run that `rank` of this group has."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.group)

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Run `action` on rank 0 alone and give its result to all; if it raises, all ranks raise the same error, so
        none waits for ever."""
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = (action(), None)
            except Exception as error:  # re-raised below, on every rank
                outcome = (None, error)
        value, failure = self.broadcast(outcome)
        if failure is not None:
            raise failure
        return value


def local_ranks(with_srun: bool = True) -> int:
    """Ranks on this machine, as torchrun, DeepSpeed's launcher or srun says; 1 where none does. Where nodes differ srun
    names all, and the most counts.

    Args:
        with_srun: False where ranks count that share their cores: srun gives each its own.
    """
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    if not said and with_srun:
        said = os.environ.get("SLURM_STEP_TASKS_PER_NODE")  # such as 4(x2),3
    return max(int(part.split("(")[0]) for part in (said or "1").split(","))


def init_ranks(timeout: timedelta = timedelta(minutes=30)) -> Ranks:
    """Make the default process group from the launcher's environment: one process without a launcher is a world of one.

    Raises:
        EnvironmentFault: the rendezvous port is in use, or the group could not be made.
    """
    _adopt_slurm_environment()
    rank = int(os.environ.setdefault("RANK", "0"))
    world_size = int(os.environ.setdefault("WORLD_SIZE", "1"))
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = _pick_device(local_rank)
    if not dist.is_initialized():
        _init_process_group(rank, world_size, device, timeout)
    return Ranks(rank, world_size, local_rank, device)


def _init_process_group(rank: int, world_size: int, device: torch.device, timeout: timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        if world_size == 1:  # needs no port, so none can be in use
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", "29500")
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    except (dist.DistNetworkError, dist.DistStoreError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        in_use = re.search(r"EADDRINUSE|already in use", str(error)) is not None
        fix = (
            "another run holds the port: choose a free one with `--master_port N` (deepspeed, torchrun) "
            "or MASTER_PORT=N"
            if in_use
            else "check that all ranks were started with the same MASTER_ADDR and MASTER_PORT, "
            "and that the address is reachable"
        )
        raise EnvironmentFault(
            f"rank {rank} of {world_size} could not join the process group at {address}: {reason}",
            "all ranks meet at MASTER_ADDR:MASTER_PORT, which one run alone may hold",
            fix,
        ) from error


def _pick_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # with one visible device a rank (srun --gpus-per-task=1) the local rank is not an index
    index = local_rank if local_rank < torch.cuda.device_count() else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _adopt_slurm_environment() -> None:
    """One task a rank under `srun` sets no RANK: map SLURM's names to torch's, unless a launcher did already."""
    env = os.environ
    if "RANK" in env or "SLURM_PROCID" not in env or "SLURM_STEP_ID" not in env:
        return
    env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"] = env["SLURM_PROCID"], env["SLURM_NTASKS"], env["SLURM_LOCALID"]
    if "MASTER_ADDR" not in env:
        nodes = subprocess.run(
            ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]], capture_output=True, text=True, check=True
        )
        env["MASTER_ADDR"] = nodes.stdout.split()[0]
    # one port a job, so that two jobs that share a node do not meet
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000))
