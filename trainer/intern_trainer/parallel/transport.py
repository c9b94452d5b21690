"""Named tensors from one stage of the pipeline to the next, and their gradients back.

Before the tensors goes a header, from host to host: names, shapes, types. So nothing about shapes has to be agreed
on beforehand; they may differ from micro-batch to micro-batch, as with a last batch that is smaller or captions that
are packed, and change from phase to phase. The header waits for no device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from intern_trainer.parallel.grid import Grid

Carry = dict[str, Tensor]
HEADER = 4096
"""Bytes of a header."""


class Transport:
    """This rank's ends of the links between pieces. Sending never waits; receiving waits for the sender."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._leaving: list[tuple[Any, Tensor]] = []
        """Sends under way, each with the tensor that must live until it is done."""

    def send(self, piece: int, carry: Carry) -> None:
        """To the piece after `piece`, which is this rank's."""
        facts = {
            name: [list(x.shape), str(x.dtype).removeprefix("torch."), x.requires_grad, _is_channels_last(x)]
            for name, x in sorted(carry.items())
        }
        group, peer = self._after(piece)
        self._send(_header(facts), group, peer)
        for name in facts:
            self._send(_as_it_lies(carry[name].detach()), group, peer)

    def receive(self, piece: int) -> Carry:
        """What the piece before `piece` sent, as leaves of this rank's graph."""
        group, peer = self._before(piece)
        header = torch.empty(HEADER, dtype=torch.uint8)
        dist.recv(header, peer, group)
        carry: Carry = {}
        for name, (shape, kind, trained, channels_last) in json.loads(header.numpy().tobytes().rstrip(b"\0")).items():
            layout = torch.channels_last if channels_last else torch.contiguous_format
            x = torch.empty(
                shape, dtype=getattr(torch, kind), device=self._grid.world.device, memory_format=layout
            )
            dist.recv(_as_it_lies(x), peer, group)
            carry[name] = x.requires_grad_(trained and torch.is_grad_enabled())
        return carry

    def send_gradients(self, piece: int, carry: Carry) -> None:
        """Those of what `piece` received, to the piece before it."""
        group, peer = self._before(piece, back=True)
        for _, x in _trained(carry):
            gradient = torch.zeros_like(x) if x.grad is None else x.grad
            self._send(_as_it_lies(_laid_like(gradient, x)), group, peer)

    def receive_gradients(self, piece: int, carry: Carry) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors that `piece` sent, and their gradients from the piece after it."""
        group, peer = self._after(piece, back=True)
        sent = [x for _, x in _trained(carry)]
        gradients = [torch.empty_like(_laid_like(x.detach(), x)) for x in sent]
        for gradient in gradients:
            dist.recv(_as_it_lies(gradient), peer, group)
        return sent, gradients

    def finish(self) -> None:
        """Wait until all that was sent has arrived."""
        for work, _ in self._leaving:
            work.wait()
        self._leaving.clear()

    def _send(self, tensor: Tensor, group: dist.ProcessGroup | None, peer: int) -> None:
        self._leaving = [(work, kept) for work, kept in self._leaving if not work.is_completed()]
        self._leaving.append((dist.isend(tensor, peer, group), tensor))

    def _after(self, piece: int, back: bool = False) -> tuple[dist.ProcessGroup | None, int]:
        return self._link(piece, back), self._grid.pipe.of_run((piece + 1) % self._grid.stages)

    def _before(self, piece: int, back: bool = False) -> tuple[dist.ProcessGroup | None, int]:
        return self._link(piece - 1, back), self._grid.pipe.of_run((piece - 1) % self._grid.stages)

    def _link(self, piece: int, back: bool) -> dist.ProcessGroup | None:
        """The group for what goes between `piece` and the one after it."""
        ways = self._grid.backward if back else self._grid.forward
        return ways[piece % self._grid.stages == self._grid.stages - 1]


def _header(facts: Mapping[str, Any]) -> Tensor:
    text = json.dumps(facts, separators=(",", ":")).encode()
    assert len(text) <= HEADER, f"{len(facts)} tensors between two stages"
    return torch.frombuffer(bytearray(text.ljust(HEADER, b"\0")), dtype=torch.uint8)


def _trained(carry: Carry) -> list[tuple[str, Tensor]]:
    return [(name, x) for name, x in sorted(carry.items()) if x.requires_grad]


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _laid_like(x: Tensor, like: Tensor) -> Tensor:
    """Contiguous, in the memory format that the receiver of `like` holds it in."""
    return x.contiguous(memory_format=torch.channels_last if _is_channels_last(like) else torch.contiguous_format)


def _as_it_lies(x: Tensor) -> Tensor:
    """The elements in the order of the memory, contiguous; a view where `x` is contiguous in its format."""
    return x.permute(0, 2, 3, 1) if _is_channels_last(x) else x.contiguous()
