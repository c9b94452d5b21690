"""The engine's state as slices, and back: nothing in it depends on the ZeRO stage or the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intern_trainer.errors import CheckpointError
from intern_trainer.slices import BUFFER, EMA, FROZEN, OPTIM, PARAM, Read, Slice

if TYPE_CHECKING:
    from intern_trainer.engine.engine import Engine

_LOSS_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are in the model's state dict, under their names there."""
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield f"{prefix}.{key}".lstrip("."), buffer


def shapes(model: nn.Module) -> dict[tuple[str, str], tuple[int, ...]]:
    found = {
        (PARAM if p.requires_grad else FROZEN, name): tuple(getattr(p, "ds_shape", p.shape))
        for name, p in model.named_parameters()
    }
    return found | {(BUFFER, name): tuple(buffer.shape) for name, buffer in persistent_buffers(model)}


def slices(engine: Engine) -> Iterator[Slice]:
    layout, state = engine.layout, engine.optimizer.state
    for piece in layout.pieces:
        if not piece.saved:
            continue
        holder = layout.holders[piece.holder]
        yield Slice(PARAM, piece.name, piece.shape, piece.start, piece.of(holder))
        if engine.average is not None:
            yield Slice(EMA, piece.name, piece.shape, piece.start, piece.of(engine.average.values[piece.holder]))
        for key, value in _moments(state.get(holder, {}), holder):
            yield Slice(OPTIM + key, piece.name, piece.shape, piece.start, piece.of(value))
    for piece in layout.frozen_pieces:
        if piece.saved:
            yield Slice(FROZEN, piece.name, piece.shape, piece.start, piece.of(layout.frozen_holders[piece.holder]))
    if engine._ranks.is_main:
        for name, buffer in persistent_buffers(engine.module):
            yield Slice(BUFFER, name, tuple(buffer.shape), 0, buffer.detach().reshape(-1))


def scalars(engine: Engine) -> dict[str, Any]:
    optimizer = engine.optimizer
    holders = engine.layout.holders
    found: dict[str, Any] = {
        "optimizer": engine.facts["optimizer"],
        "moments": sorted({key for holder in holders for key, _ in _moments(optimizer.state.get(holder, {}), holder)}),
        "optimizer_steps": _optimizer_steps(optimizer, holders),
        "ema_updates": engine.average.updates if engine.average is not None else None,
    }
    scaler = getattr(engine.zero_optimizer, "loss_scaler", None)
    if scaler is not None and engine.facts["precision"] == "fp16":
        found["loss_scaler"] = {key: getattr(scaler, key) for key in _LOSS_SCALER if hasattr(scaler, key)}
    return found


@torch.no_grad()
def load(engine: Engine, read: Read, saved: dict[str, Any]) -> None:
    layout = engine.layout
    _fill(engine, read, PARAM, layout.holders)
    _load_fixed(engine, read, FROZEN)
    if engine.average is not None:
        if saved.get("ema_updates") is None:
            engine.average.restart(layout.holders)
        else:
            _fill(engine, read, EMA, engine.average.values)
            engine.average.updates = saved["ema_updates"]
    _load_optimizer(engine, read, saved)
    for key, value in saved.get("loss_scaler", {}).items():
        if engine.facts["precision"] == "fp16" and hasattr(engine.zero_optimizer.loss_scaler, key):
            setattr(engine.zero_optimizer.loss_scaler, key, value)
    layout.refresh()


@torch.no_grad()
def load_weights(engine: Engine, read: Read) -> None:
    layout = engine.layout
    _fill(engine, read, PARAM, layout.holders)
    _load_fixed(engine, read, PARAM)
    if engine.average is not None:
        engine.average.restart(layout.holders)
    layout.refresh()


def _fill(engine: Engine, read: Read, kind: str, targets: list[Tensor]) -> None:
    for piece in engine.layout.pieces:
        piece.put(targets[piece.holder], _ask(read, kind, piece.name, piece.start, piece.length))


def _load_fixed(engine: Engine, read: Read, frozen_kind: str) -> None:
    """Frozen parameters and buffers, which DeepSpeed's own universal checkpoint loses."""
    layout = engine.layout
    for piece in layout.frozen_pieces:
        piece.put(layout.frozen_holders[piece.holder], _ask(read, frozen_kind, piece.name, piece.start, piece.length))
    for name, buffer in persistent_buffers(engine.module):
        buffer.copy_(_ask(read, BUFFER, name, 0, buffer.numel()).view(buffer.shape))


def _ask(read: Read, kind: str, name: str, start: int, length: int) -> Tensor:
    try:
        return read(kind, name, start, length)
    except KeyError:
        raise CheckpointError(
            f"it holds no `{name}` of the kind `{kind}`",
            "a run goes on from a checkpoint of the same model with the same parameters frozen",
            "take the configuration that wrote it, or start a new run from its weights with init.from",
        ) from None


def _moments(state: dict[str, Any], holder: Tensor) -> list[tuple[str, Tensor]]:
    """The optimizer's tensors that go with a holder element by element (not its step count)."""
    return [
        (key, v)
        for key, v in state.items()
        if isinstance(v, Tensor) and v.numel() == holder.numel() and v.ndim == holder.ndim
    ]


def _optimizer_steps(optimizer: torch.optim.Optimizer, holders: list[Tensor]) -> int:
    """Updates so far; torch and DeepSpeed count in the state (FusedAdam in one of each group), apex in the group."""
    counts = [optimizer.state[holder]["step"] for holder in holders if "step" in optimizer.state.get(holder, {})]
    counts = counts or [group["step"] for group in optimizer.param_groups if "step" in group]
    return max((int(count) for count in counts), default=0)


def _load_optimizer(engine: Engine, read: Read, saved: dict[str, Any]) -> None:
    optimizer, layout = engine.optimizer, engine.layout
    if not saved["moments"]:  # written before the first update
        optimizer.state.clear()
        return
    for index, holder in enumerate(layout.holders):
        _make_state(engine, index)
        moments = dict(_moments(optimizer.state[holder], holder))
        if sorted(moments) != saved["moments"]:
            raise CheckpointError(
                f"it was written with optim.name={saved['optimizer']} (state {', '.join(saved['moments'])}), "
                f"this run has {engine.facts['optimizer']} (state {', '.join(sorted(moments))})",
                "a run goes on with an optimizer that keeps the same state",
                f"optim.name={saved['optimizer']}, or start a new run from its weights with init.from",
            )
        for piece in (piece for piece in layout.pieces if piece.holder == index):
            for key, value in moments.items():
                piece.put(value, _ask(read, OPTIM + key, piece.name, piece.start, piece.length))
        if "step" in optimizer.state[holder]:
            _set_count(optimizer.state[holder], saved["optimizer_steps"])
    for group in optimizer.param_groups:
        if "step" in group:
            _set_count(group, saved["optimizer_steps"])


def _make_state(engine: Engine, index: int) -> None:
    """Let the optimizer make its own kind of state for a holder, by an update that changes nothing (learning rate and
    gradients 0).
    """
    holder, groups = engine.layout.holders[index], engine.optimizer.param_groups
    if engine.optimizer.state.get(holder):
        return
    rates, kept, weights = [group["lr"] for group in groups], holder.grad, holder.detach().clone()
    holder.grad = torch.zeros_like(holder)
    for group in groups:
        group["lr"] = 0.0
    engine.layout.optimizer_step(index)
    holder.copy_(weights)
    holder.grad = kept
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


def _set_count(place: dict[str, Any], count: int) -> None:
    if isinstance(place["step"], Tensor):
        place["step"].fill_(count)
    else:
        place["step"] = count
