"""The engine that the loop, the checkpoint and the evaluation see: DeepSpeed under every ZeRO stage, with its traps
closed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from intern_zoo.chain import Carry
from torch import Tensor, nn

from intern_trainer.config.schema import Config
from intern_trainer.engine import guards, transfer, upstream
from intern_trainer.engine.average import Average
from intern_trainer.engine.layout import Layout, gather
from intern_trainer.errors import ConfigError, TrainingError
from intern_trainer.observe.places import place
from intern_trainer.parallel import Draws, Placement
from intern_trainer.parallel.pipeline import Pipeline
from intern_trainer.slices import Read, Slice


@dataclass(frozen=True)
class StepResult:
    """Global gradient norm before clipping (not finite where the gradients are not); was the update made?"""

    grad_norm: float
    applied: bool


class Engine:
    """One model in training. Made by `build_engine`.

    A step is forward and `backward` for each micro-batch (`accumulate` says how many), then `step`. No update is ever
    made with gradients that are not finite: `step` then returns `applied=False` in every stage and precision, and the
    weights, moments and average are as before (in fp16 the loss scale falls).

    Attributes:
        module: the bare model; in a pipeline the part of it that this rank holds, under the whole model's names.
        facts: what was built (ZeRO stage that runs, parameters, groups, notes for the log).
        pipeline: runs the micro-batches of a step through the stages; None without one.
    """

    def __init__(
        self,
        ds_engine: Any,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        layout: Layout,
        average: Average | None,
        config: Config,
        place: Placement,
        stage: int,
        dtype: torch.dtype,
        facts: dict[str, Any],
        shapes: dict[tuple[str, str], tuple[int, ...]],
        draws: Draws,
    ) -> None:
        self.module, self.facts = module, facts
        self.layout, self.average, self.optimizer = layout, average, optimizer
        self.pipeline = Pipeline(place.grid, place.schedule, place.chunks) if place.grid.stages > 1 else None
        self._grid, ranks = place.grid, place.grid.data
        self._ds, self._config, self._ranks, self._stage, self._dtype = ds_engine, config, ranks, stage, dtype
        self._shapes, self._draws, self._step = shapes, draws, 0
        self._frozen_set = guards.FrozenSet(module)
        compare = ranks.world_size > 1 and (stage in (1, 2) or config.guard.trace)
        self._same_modules = guards.SameModules(module, config.guard.trace) if compare else None
        self._step_begun, self._micro_batches = False, 0
        self._averaged = False
        if stage == 0:
            ds_engine.clip_fp32_gradients = lambda: None  # `step` clips: it must know the norm before the update
            if ranks.world_size == 1:
                ds_engine.enable_backward_allreduce = False  # it would copy all gradients together and back, for nobody

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's wrapper around the optimizer (ZeRO-0: the optimizer itself)."""
        return self._ds.optimizer

    @place("forward")
    def __call__(self, **tensors: Tensor) -> Any:
        """The model's output. Floating tensors are taken to the precision of the run; statistics and losses stay the
        caller's to keep in fp32.

        In a pipeline without gradients alone, and on every rank of the chain with the same tensors (pictures are needed
        where they enter); all get the output.
        """
        if self.pipeline is not None:
            return self._through(self.pipeline, tensors)
        self._begin_step()
        return self._ds(**self._cast(tensors))

    @place("forward")
    def piece(
        self, number: int, inputs: Carry, received: Carry, towers: Sequence[str] = ("image", "text")
    ) -> Carry:
        """One of this rank's pieces of a pipeline, on the model's inputs and what the piece before made of them; what
        the next piece needs and does not have among its own inputs. `towers`: those that have inputs.
        """
        self._begin_step()
        made = self._ds(number, {**self._cast(inputs), **received}, towers)
        return {name: tensor for name, tensor in made.items() if name not in inputs}

    def _cast(self, tensors: Mapping[str, Tensor]) -> Carry:
        return {name: t.to(self._dtype) if t.is_floating_point() else t for name, t in tensors.items()}

    def accumulate(self, micro_batches: int, step: int = 0) -> None:
        """Step number `step` comes, of so many micro-batches, as the phase has it. To be called between steps."""
        assert self._micro_batches == 0, "the number of micro-batches changes at the beginning of a step"
        self._step = step
        if self.pipeline is not None or micro_batches == self._ds.gradient_accumulation_steps():
            return
        self._ds._config.gradient_accumulation_steps = micro_batches
        self._ds.micro_steps = 0  # whose multiples the boundaries are
        if hasattr(self.zero_optimizer, "gradient_accumulation_steps"):
            self.zero_optimizer.gradient_accumulation_steps = micro_batches

    def micro_batch(self, number: int) -> None:
        """What is run from here on is of this micro-batch of the step."""
        self._draws.at(self._step, number)

    @contextmanager
    def gradients_of_a_step(self) -> Iterator[None]:
        """Inside, the backward passes of a pipeline's step add up their gradients; on leaving they are reduced over the
        stage's data-parallel ranks, once. Collective.
        """
        with nullcontext() if self._stage == 0 else self._ds.coalesce_grad_reduction():
            yield
        if self._stage == 0:
            self._ds.average_gradients()
        self._micro_batches = 1

    def back_from(self, loss: Tensor) -> None:
        """The backward pass of the pipeline's last piece; `loss` is a part of the step's mean loss."""
        self._ds.scale(loss).backward()

    @place("backward")
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; `loss` is the mean over its samples, and is divided by the
        accumulation here.
        """
        self._ds.backward(loss)
        self._micro_batches += 1
        if not self._ds.is_gradient_accumulation_boundary():
            self._ds.step()  # only counts the micro-batch

    @place("step")
    def step(self, lr: float) -> StepResult:
        """Clip and update, after the last micro-batch of a step. Collective.

        Raises:
            TrainingError: fp16's loss scale has fallen to its minimum; parameters were unfrozen after the engine was
                built; ranks ran different modules.
        """
        expected = self._ds.gradient_accumulation_steps()
        assert self._micro_batches == expected, f"step after {self._micro_batches} of {expected} micro-batches"
        self._frozen_set.check()
        if self._same_modules is not None:
            self._same_modules.check(self._ranks)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        result = self._step_replicated() if self._stage == 0 else self._step_zero()
        if result.applied and self.average is not None:
            self.average.update(self.layout.holders)
        self._step_begun, self._micro_batches = False, 0
        return result

    def discard(self) -> None:
        """In the place of `step`: drop the gradients of all micro-batches, and leave the rest as it is. Collective."""
        if self._same_modules is not None:
            self._same_modules.check(self._ranks)
        if self._stage == 0:
            self._drop_replicated()
        else:
            with guards.refusal(self.zero_optimizer):
                self._step_zero()
        self._step_begun, self._micro_batches = False, 0

    def train(self) -> None:
        self._ds.train()

    def eval(self) -> None:
        self._ds.eval()

    @contextmanager
    def weights(self, kind: Literal["ema", "raw"]) -> Iterator[None]:
        """Inside, the model computes with the average's weights (`ema`), or its own (`raw`). Collective. Afterwards
        all is as before, to the bit.
        """
        if kind == "raw":
            yield
            return
        if self.average is None:
            raise ConfigError(
                "weights=ema, and this run keeps no average",
                "train.ema_decay is not set",
                "train.ema_decay=0.999, or raw",
            )
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        assert self.average is not None
        self.average.exchange(self.layout.holders)
        self.layout.refresh()
        self._averaged = not self._averaged

    def gathered_state_dict(self) -> Iterator[tuple[str, Tensor]]:
        """Names and full tensors of the state dict of `module`, one at a time, on the CPU; parameters in fp32, buffers
        as they are. Collective.
        """
        layout = self.layout
        trained = _by_name(layout.pieces)
        frozen = _by_name(layout.frozen_pieces)
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            canonical = self._names[id(parameter)]
            pieces, holders = (
                (trained.get(canonical, []), layout.holders)
                if parameter.requires_grad
                else (frozen.get(canonical, []), layout.frozen_holders)
            )
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            yield name, gather(holders, pieces, shape, self._ranks).cpu()
        for name, buffer in transfer.persistent_buffers(self.module):
            yield name, buffer.detach().cpu()

    @property
    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.module.named_parameters()}

    def slices(self) -> Iterator[Slice]:
        """What this rank saves; over all ranks it is everything, once."""
        self._refuse_averaged("saved")
        return transfer.slices(self)

    def scalars(self) -> dict[str, Any]:
        """JSON-able state that is no tensor; the same on every rank."""
        return transfer.scalars(self)

    def shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """By (kind, name), for `param`, `frozen` and `buffer`: the shapes that a checkpoint of the whole model has."""
        return self._shapes

    def load(self, read: Read, scalars: dict[str, Any]) -> None:
        """Take up a saved state, whatever ZeRO stage and number of ranks wrote it. Collective.

        Raises:
            CheckpointError: it is of another model, or another kind of optimizer.
        """
        self._refuse_averaged("loaded")
        transfer.load(self, read, scalars)

    def load_weights(self, read: Read) -> None:
        """Start from other weights: parameters (kind `param`, frozen ones as well) and buffers. The average begins
        again at them. Collective.
        """
        self._refuse_averaged("loaded")
        transfer.load_weights(self, read)

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and memory."""
        self._ds.destroy()
        if self.pipeline is not None:
            upstream.compare_traces_of_all()
            upstream.forget_unit()

    def _refuse_averaged(self, action: str) -> None:
        assert not self._averaged, (
            f"state {action} inside `with engine.weights('ema')`, where average and masters are exchanged"
        )

    def _begin_step(self) -> None:
        if not self._step_begun and self.module.training and torch.is_grad_enabled():
            guards.forget_old_gradients(self.zero_optimizer, self._stage)
            self._step_begun = True

    def _through(self, pipeline: Pipeline, tensors: Carry) -> Any:
        assert not torch.is_grad_enabled(), "a pipeline trains by `steps.accumulate`"
        output: Carry = {}

        def forward(piece: int, micro: int, received: Carry) -> Carry | None:
            made = self.piece(piece, tensors, received, list(tensors))
            if piece < pipeline.last:
                return made
            output.update(made)
            return None

        pipeline.infer(1, forward)
        return self.module.output(**pipeline.to_all(output))

    def _step_zero(self) -> StepResult:
        guards.collect_offloaded_gradients(self.zero_optimizer, self._stage)
        try:
            self._ds.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise TrainingError(
                "fp16 gradients are not finite even at the smallest loss scale",
                "the update of a step needs finite gradients",
                "train.precision=bf16, a smaller optim.lr, or longer optim.schedule.warmup_steps",
            ) from error
        norm = float(self._ds.get_global_grad_norm())
        return StepResult(norm if norm >= 0 else math.inf, self._ds.was_step_applied())

    def _step_replicated(self) -> StepResult:
        gradients = [holder.grad for holder in self.layout.holders if holder.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.pipeline is not None:
            norm = norm.square()
            dist.all_reduce(norm, group=self._grid.pipe.group)
            norm = norm.sqrt()
        if not torch.isfinite(norm):
            self._drop_replicated()
            return StepResult(float(norm), False)
        if self._config.optim.clip_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.layout.holders, self._config.optim.clip_grad_norm, norm)
        self._ds.step()
        return StepResult(float(norm), True)

    def _drop_replicated(self) -> None:
        self._ds.zero_grad()
        self._ds.micro_steps += 1


def _by_name(pieces: Any) -> dict[str, list[Any]]:
    named: dict[str, list[Any]] = {}
    for piece in pieces:
        named.setdefault(piece.name, []).append(piece)
    return named
