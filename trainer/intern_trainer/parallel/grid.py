"""Ranks as a grid: pipeline stages x the data-parallel ranks that hold the same stage.

Rank `stage * data + d`: the ranks of a stage are neighbours, so that ZeRO's gathers, which are the larger traffic,
stay within a node as far as they can, and only the maps between stages leave it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.distributed as dist

from intern_trainer.ranks import Ranks


@dataclass(frozen=True)
class Grid:
    """Where this process stands.

    Attributes:
        world: among all processes. data: among those of its stage, which share out its state and the batch. pipe: among
            those that work on the same samples, one a stage; its rank there is its stage.
        forward, backward: groups of `pipe`'s processes for what goes from stage to stage: one a direction, and one more
            each for what goes from the last stage to the first and back (with several pieces a rank). Messages on one
            of them have one order on both sides, which is what NCCL asks for.
    """

    world: Ranks
    data: Ranks
    pipe: Ranks
    forward: tuple[dist.ProcessGroup | None, ...] = (None, None)
    backward: tuple[dist.ProcessGroup | None, ...] = (None, None)

    @property
    def stages(self) -> int:
        return self.pipe.world_size

    @property
    def stage(self) -> int:
        return self.pipe.rank

    @property
    def is_last(self) -> bool:
        return self.stage == self.stages - 1


def make_grid(world: Ranks, stages: int = 1, chunks: int = 1) -> Grid:
    """Collective. `stages` divides the number of ranks (`config.checks` sees to it)."""
    if stages == 1:
        return Grid(world, world, replace(world, rank=0, world_size=1))
    size = world.world_size // stages
    data = _own_group(world, [[stage * size + d for d in range(size)] for stage in range(stages)])
    chains = [[stage * size + d for stage in range(stages)] for d in range(size)]
    ways = [_own_group(world, chains).group for _ in range(4 if chunks > 1 else 2)]
    forward, backward = (ways[0], ways[-2]), (ways[1], ways[-1])
    return Grid(world, data, _own_group(world, chains), forward, backward)


def _own_group(world: Ranks, groups: list[list[int]]) -> Ranks:
    """Make all groups, as every process must; this one's place in its own."""
    own: Ranks | None = None
    for members in groups:
        made = dist.new_group(members)
        if world.rank in members:
            assert isinstance(made, dist.ProcessGroup)
            own = replace(world, rank=members.index(world.rank), world_size=len(members), group=made)
    assert own is not None
    return own
