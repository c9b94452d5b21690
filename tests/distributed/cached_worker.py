"""One rank of steps whose micro-batches share a loss, beside the same steps in plain PyTorch with all graphs kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_grad
from intern_trainer import parallel
from intern_trainer.batch import Batch
from intern_trainer.engine import build_engine
from intern_trainer.engine.runtime import load_deepspeed
from intern_trainer.ranks import Ranks
from intern_trainer.steps import accumulate
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_zoo.two_tower import TwoTowerOutput
from timm.layers import DropPath
from torch import Tensor, nn

from tests.distributed.engine_worker import case_config, debug_batch, debug_config
from tests.distributed.towers import Towers, batch

ACCUMULATION, TOGETHER, GLOBAL_BATCH = 4, 2, 16


class NoisyTowers(Towers):
    """The towers (with their batch norm over ranks), dropout and stochastic depth, and a bias for SigLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.drop_path, self.branch = nn.Dropout(0.3), DropPath(0.5), nn.Linear(7, 7)
        self.logit_bias = nn.Parameter(torch.tensor([-1.0]))

    def forward(self, image: Tensor, text: Tensor) -> TwoTowerOutput:
        out = super().forward(self.drop(image), text)
        assert out.image_features is not None
        x_be = F.normalize(out.image_features + self.drop_path(self.branch(out.image_features)), dim=-1)
        return TwoTowerOutput(x_be, out.text_features, out.logit_scale, self.logit_bias.clone())


def steps(ranks: Ranks, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each case: the largest relative differences of what two steps leave behind from what the plain steps leave,
    and the ratios of the gradient norms. DeepSpeed is told that this CPU has fp16; torch computes it.
    """
    accelerator = type(load_deepspeed().accelerator.get_accelerator())
    kept, accelerator.is_fp16_supported = accelerator.is_fp16_supported, lambda self: True
    try:
        return [_case(ranks, case) for case in cases]
    finally:
        accelerator.is_fp16_supported = kept


def _case(ranks: Ranks, case: dict[str, Any]) -> dict[str, Any]:
    real = case.get("real", False)
    sizes = {"accumulation": ACCUMULATION, "clip": 0.0} | case
    config = (debug_config if real else case_config)(sizes, ranks.world_size, GLOBAL_BATCH)
    model = config.model
    if real:
        model = model.model_copy(update={"image_options": {"drop_path_rate": 0.5}})
    loss = config.loss.model_copy(update={"kind": case.get("kind", "clip"), "block": 3})
    config = config.model_copy(update={"loss": loss, "model": model})
    task = ContrastiveTask(config, ranks)
    half = config.train.precision != "fp32"
    build = task.build_model if real else (Towers if half else NoisyTowers)  # in half precision draws are others
    torch.manual_seed(config.train.seed)
    plain = build()
    parallel.apply(plain, config, ranks)
    draws = parallel.Draws(plain, config.train.seed, ranks.rank)
    engine = build_engine(config, ranks, build)
    results: dict[str, Any] = {"differences": {}, "norms": []}
    for step in range(2):
        batches = _batches(step, ranks, debug_batch if real else batch)
        loss, gradients = _plain_step(task, plain.train(), batches, partial(draws.at, step))
        engine.train()
        engine.accumulate(ACCUMULATION, step)
        values = accumulate(task, engine, batches, TOGETHER, ranks.device)
        floor = 1e-3 * max(float(g.abs().max()) for g in gradients.values())  # some are zero but for rounding
        saved, found = plain.state_dict(), {"loss": (values["loss"], loss)}
        if not half:
            found |= {name: (_gradient(p), gradients[name]) for name, p in engine.module.named_parameters()}
            found |= {name: (b, saved[name]) for name, b in engine.module.named_buffers() if name in saved}
        for name, (ours, theirs) in found.items():
            largest = max(float(theirs.abs().max()), floor)
            results["differences"][f"{step} {name}"] = float((ours.double() - theirs).abs().max()) / largest
        norm = torch.nn.utils.get_total_norm(gradients.values())
        results["norms"].append(float(engine.step(0.0).grad_norm / norm))  # the weights stay as they are
    engine.close()
    return results


def _batches(step: int, ranks: Ranks, make: Any) -> list[Batch]:
    rows = GLOBAL_BATCH // ACCUMULATION // ranks.world_size
    found = []
    for index in range(ACCUMULATION):
        whole = make(step, index, rows * ranks.world_size)
        found.append(Batch({n: t[ranks.rank * rows :][:rows] for n, t in whole.items()}, [""] * rows))
    return found


def _plain_step(
    task: ContrastiveTask, model: nn.Module, batches: list[Batch], turn_to: Callable[[int], None]
) -> tuple[Tensor, dict[str, Tensor]]:
    """All micro-batches of a loss with their graphs; loss of this rank, gradients averaged over ranks."""
    total = torch.zeros(())
    model.zero_grad()
    for first in range(0, ACCUMULATION, TOGETHER):
        outs = []
        for number in range(first, first + TOGETHER):
            turn_to(number)
            outs.append(model(**batches[number].tensors))
        outputs = {name: torch.cat([getattr(o, name) for o in outs]) for name in ("image_features", "text_features")}
        shared = {name: getattr(outs[0], name) for name in ("logit_scale", "logit_bias")}
        loss, _ = task.loss(outputs | {name: tensor for name, tensor in shared.items() if tensor is not None})
        loss = loss * TOGETHER / ACCUMULATION
        loss.backward()
        total += loss.detach()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return total, copy.deepcopy(gradients)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Whole, averaged over ranks, whatever ZeRO made of it."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        gradient = safe_get_full_grad(parameter)
    else:
        gradient = parameter.grad
    return torch.zeros(getattr(parameter, "ds_shape", parameter.shape)) if gradient is None else gradient
