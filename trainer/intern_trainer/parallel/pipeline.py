"""One rank's part of a pipeline's step: passes in the order of the schedule, tensors to and from its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from intern_trainer.parallel.grid import Grid
from intern_trainer.parallel.schedule import Action, actions, forward_only
from intern_trainer.parallel.transport import Carry, Transport


class Forward(Protocol):
    """`forward(piece, micro_batch, received)`: what the piece makes of what it received, for the next one. The last
    piece gives a loss to go backward from, or nothing in a pass without gradients."""

    def __call__(self, piece: int, micro: int, received: Carry) -> Carry | Tensor | None: ...


class Pipeline:
    """Why not torch's `distributed.pipelining`: its stages fix the shapes of all micro-batches at the start and know
    positional tensors that all have gradients; here the tensors have names, some have no gradient (token ids, a frozen
    tower's features), shapes may change, and a pass without gradients precedes a step whose loss is of all
    micro-batches. Its runtime is the peer that `python -m benchmarks pipeline` compares with.
    """

    def __init__(self, grid: Grid, schedule: str, chunks: int) -> None:
        self.grid, self.schedule, self.chunks = grid, schedule, chunks
        self.last = grid.stages * chunks - 1
        self._transport = Transport(grid)

    def train(
        self,
        micro_batches: int,
        forward: Forward,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
        turn_to: Callable[[int], None] = lambda micro: None,
    ) -> None:
        """Forward and backward passes of a step. Collective in the chain.

        Args:
            backward: goes backward from the last piece's loss.
            turn_to: called with the number of the micro-batch before each of its passes; a backward pass may compute
                forward once more.
        """
        grid = self.grid
        todo = actions(self.schedule, grid.stages, self.chunks, grid.stage, micro_batches)
        self._run(todo, forward, backward, turn_to)

    @torch.no_grad()
    def infer(self, micro_batches: int, forward: Forward, turn_to: Callable[[int], None] = lambda micro: None) -> None:
        """Forward passes alone."""
        grid = self.grid
        self._run(forward_only(grid.stages, self.chunks, grid.stage, micro_batches), forward, None, turn_to)

    def to_all(self, carry: Carry) -> Carry:
        """The last stage's tensors, on every rank of the chain."""
        pipe = self.grid.pipe
        facts = pipe.broadcast({name: (x.shape, x.dtype) for name, x in carry.items()}, self.grid.stages - 1)
        found: Carry = {}
        for name, (shape, dtype) in facts.items():
            x = (
                carry[name].detach().contiguous()
                if self.grid.is_last
                else torch.empty(shape, dtype=dtype, device=pipe.device)
            )
            dist.broadcast(x, pipe.of_run(self.grid.stages - 1), group=pipe.group)
            found[name] = x
        return found

    def _run(
        self,
        todo: Sequence[Action],
        forward: Forward,
        backward: Callable[[Tensor], None] | None,
        turn_to: Callable[[int], None],
    ) -> None:
        held: dict[tuple[int, int], tuple[Carry, Carry | Tensor | None]] = {}
        for action in todo:
            turn_to(action.micro)
            key = (action.piece, action.micro)
            if action.forward:
                received = self._transport.receive(action.piece) if action.piece else {}
                made = forward(*key, dict(received))
                if isinstance(made, dict):
                    self._transport.send(action.piece, made)
                if backward is not None:
                    held[key] = received, made
            else:
                self._go_back(action.piece, *held.pop(key), backward)
        self._transport.finish()

    def _go_back(
        self, piece: int, received: Carry, made: Carry | Tensor | None, backward: Callable[[Tensor], None] | None
    ) -> None:
        if isinstance(made, Tensor):
            assert backward is not None
            backward(made)
        elif made is not None:
            sent, gradients = self._transport.receive_gradients(piece, made)
            if sent:
                torch.autograd.backward(sent, gradients)
        if piece:
            self._transport.send_gradients(piece, received)
