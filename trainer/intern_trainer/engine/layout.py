"""Where the training state lies on this rank: fp32 masters in a few holder tensors, and which piece of which
parameter is where in them.

One class for each way in which ZeRO divides the state. All of them read DeepSpeed 0.19.8's own bookkeeping, none
changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intern_trainer.ranks import Ranks


@dataclass(frozen=True)
class Piece:
    """Elements `start : start + length` of the flattened parameter `name`, at `offset` in holder number `holder`.

    `saved` is False where another rank holds the same elements and writes them.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    holder: int
    offset: int = 0
    saved: bool = True

    def of(self, like_holder: Tensor) -> Tensor:
        """The piece's elements, 1-D, of the holder or of a tensor of the holder's shape (a moment, an average)."""
        return like_holder.detach().reshape(-1)[self.offset : self.offset + self.length]

    def put(self, like_holder: Tensor, values: Tensor) -> None:
        """Overwrite the piece's elements."""
        if like_holder.is_contiguous():
            like_holder.detach().view(-1)[self.offset : self.offset + self.length].copy_(values)
        else:  # such as a channels-last weight; only whole parameters are held in another memory format
            like_holder.detach().copy_(values.view(self.shape))


class Layout(Protocol):
    """What the engine asks of each ZeRO stage."""

    holders: list[Tensor]
    """fp32 masters of the trainable parameters, the tensors that the optimizer steps."""
    pieces: list[Piece]
    frozen_pieces: list[Piece]

    @property
    def frozen_holders(self) -> list[Tensor]:
        """Frozen parameters (ZeRO-3: this rank's parts of them), as the model holds them."""
        ...

    def refresh(self) -> None:
        """Make the weights that the model computes with from the masters and the frozen weights. Collective."""
        ...

    def optimizer_step(self, holder: int) -> None:
        """The bare optimizer's step on one holder, whose `grad` is set."""
        ...


def share_out(sizes: Sequence[int], world_size: int) -> list[int]:
    """For each of several replicated tensors the rank that saves it, so that ranks save about the same number of
    elements.
    """
    load = [0] * world_size
    owners = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[index] = load.index(min(load))
        load[owners[index]] += sizes[index]
    return owners


def _replicated(named: Sequence[tuple[str, nn.Parameter]], ranks: Ranks) -> tuple[list[Tensor], list[Piece]]:
    owners = share_out([p.numel() for _, p in named], ranks.world_size)
    pieces = [
        Piece(name, tuple(p.shape), 0, p.numel(), index, saved=owners[index] == ranks.rank)
        for index, (name, p) in enumerate(named)
    ]
    return [p for _, p in named], pieces


def _frozen(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if not p.requires_grad]


class Replicated:
    """ZeRO-0 in fp32: every rank holds everything, and the model's parameters are the masters."""

    def __init__(self, ds_engine: Any, model: nn.Module, ranks: Ranks) -> None:
        self._optimizer = ds_engine.optimizer
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.holders, self.pieces = _replicated(trained, ranks)
        self._frozen_holders, self.frozen_pieces = _replicated(_frozen(model), ranks)

    @property
    def frozen_holders(self) -> list[Tensor]:
        return self._frozen_holders

    def refresh(self) -> None:
        pass  # the masters are the model's own weights

    def optimizer_step(self, holder: int) -> None:
        groups = self._optimizer.param_groups
        kept = [group["params"] for group in groups]
        for group in groups:
            group["params"] = [p for p in group["params"] if p is self.holders[holder]]
        try:
            self._optimizer.step()
        finally:
            for group, params in zip(groups, kept, strict=True):
                group["params"] = params


class FlatPartitions:
    """ZeRO-1 and 2: the parameters of a group one after another in a flat tensor, cut into equal parts, one a rank."""

    def __init__(self, ds_engine: Any, model: nn.Module, ranks: Ranks) -> None:
        self._optimizer = ds_engine.optimizer
        self.holders = list(self._optimizer.single_partition_of_fp32_groups)
        self.pieces = list(self._find_pieces({id(p): name for name, p in model.named_parameters()}))
        self._frozen_holders, self.frozen_pieces = _replicated(_frozen(model), ranks)

    def _find_pieces(self, names: dict[int, str]) -> Iterator[Piece]:
        optimizer = self._optimizer
        for group, parameters in enumerate(optimizer.round_robin_bit16_groups):
            size = int(optimizer.partition_size[group])
            first = size * dist.get_rank(optimizer.real_dp_process_group[group])
            for parameter, place in zip(parameters, optimizer.round_robin_bit16_offsets[group], strict=True):
                low, high = max(place, first), min(place + parameter.numel(), first + size)
                if low < high:
                    shape = tuple(parameter.shape)
                    yield Piece(names[id(parameter)], shape, low - place, high - low, group, low - first)

    @property
    def frozen_holders(self) -> list[Tensor]:
        return self._frozen_holders

    def refresh(self) -> None:
        self._optimizer.update_lp_params()

    def optimizer_step(self, holder: int) -> None:
        self._optimizer._optimizer_step(holder)


class ShardedParameters:
    """ZeRO-3: each parameter cut into equal parts (the last ones padded), one a rank; parts of a sub-group in one flat
    tensor.
    """

    def __init__(self, ds_engine: Any, model: nn.Module) -> None:
        self._optimizer = ds_engine.optimizer
        names = {id(p): name for name, p in model.named_parameters()}
        self.holders = list(self._optimizer.fp32_partitioned_groups_flat)
        self.pieces: list[Piece] = []
        for index, parameters in enumerate(self._optimizer.fp16_groups):
            offset = 0
            for parameter in parameters:
                self._add(self.pieces, parameter, names[id(parameter)], index, offset)
                offset += parameter.partition_numel()
        self._frozen_parameters = _frozen(model)
        self.frozen_pieces: list[Piece] = []
        for index, (name, parameter) in enumerate(self._frozen_parameters):
            self._add(self.frozen_pieces, parameter, name, index, 0)

    @staticmethod
    def _add(pieces: list[Piece], parameter: Any, name: str, holder: int, offset: int) -> None:
        part = parameter.partition_numel()
        start = part * parameter.ds_zero_partition_rank
        length = min(part, parameter.ds_numel - start)
        if length > 0:  # ranks at the end may hold nothing but padding
            pieces.append(Piece(name, tuple(parameter.ds_shape), start, length, holder, offset))

    @property
    def frozen_holders(self) -> list[Tensor]:
        return [p.ds_tensor for _, p in self._frozen_parameters]  # type: ignore[attr-defined]

    def refresh(self) -> None:
        optimizer = self._optimizer
        optimizer.parameter_offload.partition_all_parameters()  # drop gathered copies, they are made of the old weights
        for index in range(len(self.holders)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()

    def optimizer_step(self, holder: int) -> None:
        self._optimizer._optimizer_step(holder)


def layout_of(ds_engine: Any, model: nn.Module, stage: int, ranks: Ranks) -> Layout:
    """Of the engine whose state `ranks` divide among them."""
    if stage == 0:
        return Replicated(ds_engine, model, ranks)
    return ShardedParameters(ds_engine, model) if stage == 3 else FlatPartitions(ds_engine, model, ranks)


def gather(
    layout_holders: Sequence[Tensor], pieces: Sequence[Piece], shape: tuple[int, ...], ranks: Ranks
) -> Tensor:
    """One full tensor out of the pieces that the ranks hold of it (this rank's are given). Collective; fp32, on
    their device.

    Bits are summed as integers, to which every element but one rank's is zero: exact for every value.
    """
    full = torch.zeros(shape, dtype=torch.float32, device=ranks.device)
    for piece in pieces:
        if piece.saved:
            full.view(-1)[piece.start : piece.start + piece.length].copy_(piece.of(layout_holders[piece.holder]))
    if ranks.world_size > 1:
        dist.all_reduce(full.view(-1).view(torch.int32), group=ranks.group)
    return full
