"""What the ranks of `test_traps` do: each trap of DeepSpeed, sprung with our guard in place."""

from __future__ import annotations

import math
from typing import Any

import torch
from intern_trainer.batch import Batch
from intern_trainer.engine import build_engine
from intern_trainer.engine.runtime import load_deepspeed
from intern_trainer.errors import UserError
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask
from torch import nn

from tests.distributed.engine_worker import case_config, collect, digest, reader, run_steps
from tests.distributed.towers import Towers, batch

STAGES = (0, 1, 2, 3)
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def _micro_batch(config: Any, ranks: Ranks, step: int = 0) -> Batch:
    size = config.train.global_batch // ranks.world_size
    whole = batch(step, 0, size * ranks.world_size)
    return Batch({k: t[ranks.rank * size : (ranks.rank + 1) * size] for k, t in whole.items()}, [""] * size)


def _message(action: Any) -> str:
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def scalar_parameter(ranks: Ranks) -> dict[str, str]:
    class Scalar(Towers):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(1.0))

    configs = {stage: case_config({"stage": stage}, ranks.world_size) for stage in STAGES}
    return {str(s): _message(lambda c=c: build_engine(c, ranks, Scalar)) for s, c in configs.items()}


def initial_weights(ranks: Ranks) -> dict[str, list[str]]:
    """Names of weights that are not, to the bit, those of an unsharded fp32 build."""
    torch.manual_seed(3)
    plain = {name: parameter.detach().clone() for name, parameter in Towers().named_parameters()}
    wrong = {}
    for precision in ("fp32", "bf16"):
        for stage in STAGES:
            engine = build_engine(
                case_config({"stage": stage, "precision": precision}, ranks.world_size), ranks, Towers
            )
            state = dict(engine.gathered_state_dict())
            wrong[f"{stage}-{precision}"] = [
                name for name, value in plain.items() if not torch.equal(state[name], value)
            ]
            engine.close()
    return wrong


def unused_parameters(ranks: Ranks) -> dict[str, list[float]]:
    """Losses where a block is skipped in odd steps, or in one micro-batch of a step; all stages must give stage 0's."""
    losses = {}
    variants: dict[str, dict[str, Any]] = {str(stage): {"stage": stage} for stage in STAGES}
    variants |= {f"{stage} offload": {"stage": stage, "zero": OFFLOAD} for stage in (1, 2, 3)}
    for name, variant in variants.items():
        config = case_config({**variant, "accumulation": 2}, ranks.world_size)
        engine = build_engine(config, ranks, Towers)

        def skip(step: int, micro: int, size: int, module: Any = engine.module) -> Any:
            skipped = {1: {0, 1}, 2: {0}, 4: {1}}.get(step % 5, set())  # none; all; first; none; last micro-batch
            module.skip = {"image_mixer"} if micro in skipped else set()
            return batch(step, micro, size)

        losses[name] = run_steps(engine, config, ranks, 2, range(8), skip)["losses"]
        engine.close()
    return losses


def different_modules(ranks: Ranks) -> dict[str, str]:
    messages = {}
    for stage in (1, 2):
        config = case_config({"stage": stage}, ranks.world_size)
        engine = build_engine(config, ranks, Towers)
        run_steps(engine, config, ranks, 1, range(1))
        engine.module.skip = {"image_mixer" if ranks.rank else "text_mixer"}
        messages[str(stage)] = _message(lambda e=engine, c=config: run_steps(e, c, ranks, 1, range(1)))
        engine.close()
    return messages


def unfrozen_later(ranks: Ranks) -> dict[str, str]:
    def build() -> Towers:
        towers = Towers()
        towers.stem.requires_grad_(False)
        return towers

    messages = {}
    for stage in STAGES:
        config = case_config({"stage": stage}, ranks.world_size)
        engine = build_engine(config, ranks, build)
        engine.module.stem.requires_grad_(True)
        messages[str(stage)] = _message(lambda e=engine, c=config: run_steps(e, c, ranks, 1, range(1)))
        engine.close()
    return messages


class ForeignNorms(nn.Module):
    """torch's own batch norms in place of the zoo's."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = Towers()
        self.towers.stem_norm = nn.Sequential(nn.BatchNorm2d(8), nn.SyncBatchNorm(8))  # type: ignore[assignment]

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> Any:
        return self.towers(image=image, text=text)


def foreign_batch_norms(ranks: Ranks) -> dict[str, Any]:
    results = {}
    for stage, precision in ((0, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")):
        config = case_config({"stage": stage, "precision": precision}, ranks.world_size)
        engine = build_engine(config, ranks, ForeignNorms)
        losses = run_steps(engine, config, ranks, 1, range(4))["losses"]
        state = dict(engine.gathered_state_dict())
        running = {n: t for n, t in state.items() if "running" in n}
        same = len(set(ranks.gather(digest(running.items())))) == 1
        results[f"{stage}-{precision}"] = {
            "losses": losses,
            "same_on_all_ranks": same,
            "running": {n: t.tolist() for n, t in running.items()},
            "dtypes": sorted({str(t.dtype) for t in running.values()}),
        }
        engine.close()
    return results


def not_finite(ranks: Ranks) -> dict[str, Any]:
    """One rank's gradients are NaN (or inf) in step 2: nothing may change; afterwards training goes on as if nothing
    had been.
    """
    results = {}
    cases: list[dict[str, Any]] = [{"stage": s, "precision": p} for p in ("fp32", "bf16") for s in STAGES]
    cases += [{"stage": s, "precision": "bf16", "zero": OFFLOAD} for s in (1, 3)]
    for case in cases:
        config = case_config(case | {"ema_decay": 0.9}, ranks.world_size)
        losses, norms, unchanged = [], [], []
        for bad in (None, math.nan, math.inf):
            engine = build_engine(config, ranks, Towers)
            run_steps(engine, config, ranks, 1, range(2))
            if bad is not None:
                before, _ = collect(engine, ranks)
                task = ContrastiveTask(config, ranks)
                loss, _ = task.loss(task.forward(engine, _micro_batch(config, ranks)))
                factor = bad if ranks.rank == ranks.world_size - 1 else 1.0
                engine.backward(loss * factor)
                result = engine.step(1.0)
                norms.append([math.isfinite(result.grad_norm), result.applied])
                after, _ = collect(engine, ranks)
                statistics = {
                    ("buffer", n)
                    for n in ("stem_norm.running_mean", "stem_norm.running_var", "stem_norm.num_batches_tracked")
                }
                unchanged.append(all(torch.equal(before[key], after[key]) for key in before.keys() - statistics))
            losses.append(run_steps(engine, config, ranks, 1, range(2, 4))["losses"])
            engine.close()
        results["-".join(str(value) for value in case.values())] = {
            "losses": losses,
            "norms": norms,
            "unchanged": unchanged,
        }
    return results


def average(ranks: Ranks) -> dict[str, Any]:
    """The average against one kept by hand, and the weights after evaluating with it."""
    results = {}
    for stage, precision in ((0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")):
        config = case_config({"stage": stage, "precision": precision, "ema_decay": 0.8}, ranks.world_size)
        engine = build_engine(config, ranks, Towers)
        by_hand = dict(engine.gathered_state_dict())
        for step in range(5):
            run_steps(engine, config, ranks, 1, [step])
            decay = min(0.8, (1 + step) / (10 + step))
            for name, value in engine.gathered_state_dict():
                by_hand[name] = torch.lerp(by_hand[name], value, 1 - decay) if value.is_floating_point() else value
        engine.eval()
        inputs = _micro_batch(config, ranks).tensors
        with torch.no_grad():
            raw = engine(**inputs).image_features.float()
        before = digest(engine.gathered_state_dict())
        with engine.weights("ema"), torch.no_grad():
            averaged = dict(engine.gathered_state_dict())
            features = engine(**inputs).image_features.float()
        with torch.no_grad():
            raw_again = engine(**inputs).image_features.float()
        names = [name for name, _ in engine.module.named_parameters()]
        results[f"{stage}-{precision}"] = {
            "difference": max(float((by_hand[name] - averaged[name]).abs().max()) for name in names),
            "moved": float((features - raw).abs().max()),
            "back": torch.equal(raw, raw_again) and before == digest(engine.gathered_state_dict()),
        }
        engine.close()
    return results


def loss_scale(ranks: Ranks) -> dict[str, Any]:
    """fp16 with a loss scale that overflows at first. DeepSpeed is told that this CPU has fp16; torch computes it."""
    accelerator = type(load_deepspeed().accelerator.get_accelerator())
    kept, accelerator.is_fp16_supported = accelerator.is_fp16_supported, lambda self: True
    scaling = {"fp16": {"initial_scale_power": 20, "hysteresis": 1, "loss_scale_window": 1000}}
    results = {}
    for stage, other in ((1, 3), (3, 2)):
        config = case_config({"stage": stage, "precision": "fp16", "ds": scaling}, ranks.world_size)
        engine = build_engine(config, ranks, Towers)
        first = collect(engine, ranks)[0]
        run = run_steps(engine, config, ranks, 1, range(1))
        after_overflow = collect(engine, ranks)[0]
        run_steps(engine, config, ranks, 1, range(1, 8))
        state, scalars = collect(engine, ranks)
        losses = run_steps(engine, config, ranks, 1, range(8, 11))
        engine.close()
        config = case_config({"stage": other, "precision": "fp16", "ds": scaling}, ranks.world_size)
        engine = build_engine(config, ranks, Towers)
        engine.load(reader(state), scalars)
        resumed = run_steps(engine, config, ranks, 1, range(8, 11))
        engine.close()
        results[str(stage)] = {
            "first_applied": run["applied"],
            "first_norm_finite": math.isfinite(run["norms"][0]),
            "unchanged": all(torch.equal(t, after_overflow[k]) for k, t in first.items() if k[0] == "param"),
            "scale": scalars["loss_scaler"]["cur_scale"],
            "losses": losses,
            "resumed": resumed,
        }
    accelerator.is_fp16_supported = kept
    return results


def compiled_optimizers(ranks: Ranks, payload: None = None) -> dict[str, Any]:
    """Losses with DeepSpeed's own Adams, with torch's, and of a run that goes on from the third step."""
    results = {}
    cases: list[dict[str, Any]] = [{"stage": 1, "optimizer": "ds_fused_adam"}]
    cases += [{"stage": 3, "zero": OFFLOAD, "optimizer": "ds_cpu_adam"}]
    for case in cases:
        plain = case_config(case | {"optimizer": "adamw"}, ranks.world_size)
        engine = build_engine(plain, ranks, Towers)
        torch_losses = run_steps(engine, plain, ranks, 1, range(6))["losses"]
        engine.close()
        config = case_config(case, ranks.world_size)
        engine = build_engine(config, ranks, Towers)
        losses = run_steps(engine, config, ranks, 1, range(3))["losses"]
        state, scalars = collect(engine, ranks)
        losses += run_steps(engine, config, ranks, 1, range(3, 6))["losses"]
        engine.close()
        engine = build_engine(config, ranks, Towers)
        engine.load(reader(state), scalars)
        resumed = run_steps(engine, config, ranks, 1, range(3, 6))["losses"]
        engine.close()
        results[f"{case['optimizer']} {case['stage']}"] = {"losses": losses, "torch": torch_losses, "resumed": resumed}
    return results


def all_traps(ranks: Ranks, names: list[str]) -> dict[str, Any]:
    return {name: globals()[name](ranks) for name in names}
