"""Bytes of training state on one rank, as DeepSpeed 0.19.8 lays it out under each ZeRO stage.

Legend: n ranks, p parameters, w bytes of a weight. What the formulae say was compared with what an engine holds on two
ranks (tests/distributed/test_plan.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from intern_trainer.plan.model import Weights
from intern_trainer.plan.settings import Settings

FP32 = 4
ALIGNMENT = 2
"""A flat group of ZeRO-1 and 2 is padded to a multiple of this many elements a rank (`nccl_start_alignment_factor`)."""
FLATTENED = 500_000_000
"""Gradients that ZeRO-0 copies together for one all-reduce (`elements_per_buffer` of `buffered_allreduce_fallback`)."""

Bytes = dict[str, int]
"""By the name of what they are for; in the order in which they are shown."""


def resident(weights: Weights, settings: Settings, ranks: int) -> Bytes:
    """What is there from the first update on, whether the rank computes or waits; on device and host together."""
    part = updated(weights, settings, ranks)
    frozen = sum(weights.frozen)
    held: Bytes = {}
    if settings.stage == 3:
        held["parameters"] = settings.weight * (part + _parts(weights.frozen, ranks))
        # a single rank's part is the whole tensor, and nothing is copied
        held["whole parameters"] = settings.weight * persistent(weights, settings) if ranks > 1 else 0
        held["gradients"] = settings.gradient * part
        held["buckets"] = settings.weight * settings.bucket if settings.contiguous else 0
    elif settings.stage > 0:
        held["parameters"] = settings.weight * (sum(_padded(group, ranks) for group in weights.groups) + frozen)
    else:
        held["parameters"] = settings.weight * weights.total
    held["fp32 masters"] = FP32 * part if settings.has_masters else 0
    held["moments"] = FP32 * settings.moments * part
    held["average"] = FP32 * part if settings.average else 0
    held["buffers"] = weights.buffer_bytes
    return {name: size for name, size in held.items() if size}


def in_backward(weights: Weights, settings: Settings, ranks: int, keeps_whole: bool = False) -> Bytes:
    """Besides, while gradients are made. `keeps_whole`: whether ZeRO-3 lets go of nothing, see `gathers`."""
    if settings.stage == 3:
        whole = movable(weights, settings) if keeps_whole else gathered(weights, settings)
        return {
            "second parts (hpZ)": _second_parts(weights, settings),
            "whole gradients": settings.weight * weights.trained if settings.summed_whole else 0,
            "gathered parameters": settings.weight * whole if ranks > 1 else 0,
        }
    buckets = settings.weight * settings.bucket * (2 if settings.two_buckets else 1)
    held = {"gradients": _gradients(weights, settings, ranks)}
    if settings.stage > 0 and settings.contiguous and ranks > 1:
        held["buckets"] = buckets
    return held


def in_update(weights: Weights, settings: Settings, ranks: int) -> Bytes:
    """Besides, while the optimizer runs, with no activations left."""
    if settings.stage == 0:
        flattened = FP32 * min(weights.trained, FLATTENED) if ranks > 1 else 0
        return {"gradients": FP32 * weights.trained, "buckets": flattened}
    if settings.stage == 3:
        largest = max((_parts(group, ranks) for group in weights.groups), default=0)
        biggest_tensor = max((-(-size // ranks) for group in weights.groups for size in group), default=0)
        return {
            "second parts (hpZ)": _second_parts(weights, settings),
            "fp32 gradients": FP32 * min(largest, settings.sub_group + biggest_tensor),
        }
    return {
        "gradients": settings.gradient * _touched(weights, ranks),
        "fp32 gradients": FP32 * max((_padded(group, ranks) // ranks for group in weights.groups), default=0),
    }


def gathered(weights: Weights, settings: Settings) -> int:
    """Parameters that ZeRO-3 holds whole at once beside the persistent ones: at least the largest module and what is
    fetched ahead, at most `stage3_max_live_parameters`, as long as their next use is near.
    """
    wanted = weights.largest_module + settings.prefetch + settings.reuse
    return min(movable(weights, settings), max(weights.largest_module, min(settings.live, wanted)))


def kept_for_backward(weights: Weights, settings: Settings) -> int:
    """Parameters of the end of the forward pass that are still whole when the backward pass comes to them: between the
    two uses lies everything behind them, twice.
    """
    return min(movable(weights, settings), settings.live, settings.reuse // 2)


def movable(weights: Weights, settings: Settings) -> int:
    """Parameters that ZeRO-3 gathers module by module."""
    return weights.total - persistent(weights, settings)


def persistent(weights: Weights, settings: Settings) -> int:
    """Parameters that ZeRO-3 keeps whole, and gathers once, after each update."""
    return sum(size for size in weights.tensors if size <= settings.persistent)


def updated(weights: Weights, settings: Settings, ranks: int) -> int:
    """Trained parameters of which this rank keeps masters and moments."""
    if settings.stage == 0:
        return weights.trained
    if settings.stage == 3:
        return sum(_parts(group, ranks) for group in weights.groups)
    return sum(_padded(group, ranks) // ranks for group in weights.groups)


def _second_parts(weights: Weights, settings: Settings) -> int:
    """Made in the forward pass, let go at the end of the step."""
    return settings.weight * _parts(weights.tensors, settings.hpz) if settings.hpz > 1 else 0


def _parts(sizes: Sequence[int], ranks: int) -> int:
    """ZeRO-3 cuts each tensor by itself."""
    return sum(-(-size // ranks) for size in sizes)


def _padded(group: Sequence[int], ranks: int) -> int:
    """ZeRO-1 and 2 cut a whole group."""
    step = ALIGNMENT * ranks
    return -(-sum(group) // step) * step


def _gradients(weights: Weights, settings: Settings, ranks: int) -> int:
    """Of ZeRO-0 to 2. ZeRO-2 keeps those of the parameters that its part touches, each of them whole, unless all are
    summed first."""
    if settings.summed_whole:
        return settings.weight * weights.trained
    if settings.stage == 2:
        return settings.gradient * _touched(weights, ranks)
    return (FP32 if settings.stage == 0 else settings.gradient) * weights.trained


def _touched(weights: Weights, ranks: int) -> int:
    """Elements of the parameters that a rank's part of each flat group meets, on the rank with the most."""
    return max(sum(_touched_in(group, ranks, rank) for group in weights.groups) for rank in range(ranks))


def _touched_in(group: Sequence[int], ranks: int, rank: int) -> int:
    ends = list(accumulate(group))
    size = _padded(group, ranks) // ranks
    first = bisect_right(ends, rank * size)
    last = bisect_left(ends, (rank + 1) * size)
    return sum(group[first : last + 1])
