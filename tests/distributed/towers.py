"""A small two-tower model, its data, and training in plain PyTorch, to compare engines with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from intern_kernels.contrastive_loss import info_nce
from intern_trainer.config.schema import Config
from intern_trainer.optim import learning_rate, parameter_groups
from intern_zoo.metanet.norm import BatchNorm
from intern_zoo.two_tower import TwoTowerOutput
from torch import Tensor, nn

WIDTH, WORDS, LENGTH, PIXELS = 8, 50, 6, 8


class Mixer(nn.Module):
    """Attention and a layer norm, with parameters whose sizes are not multiples of anything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x_bnc: Tensor) -> Tensor:
        b, n, c = x_bnc.shape
        q, k, v = self.qkv(self.norm(x_bnc)).view(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q * self.temperature, k, v)
        return x_bnc + self.project(y.transpose(1, 2).reshape(b, n, c))


class Towers(nn.Module):
    """Convolutions (full, strided, depthwise), batch norm, attention, embedding; a parent that initialises its
    children's weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1, bias=False)
        self.stem_norm = BatchNorm(WIDTH)
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.image_mixer = Mixer(WIDTH)
        self.image_out = nn.Linear(WIDTH, 7)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.text_mixer = Mixer(WIDTH)
        self.text_out = nn.Linear(WIDTH, 7)
        self.logit_scale = nn.Parameter(torch.full((1,), 0.7))
        self.register_buffer("offset", torch.linspace(0, 1, LENGTH)[:, None], persistent=False)
        for linear in (self.image_out, self.text_out):
            nn.init.normal_(linear.weight, std=0.5)
        self.skip: set[str] = set()

    def no_weight_decay(self) -> set[str]:
        return {"image_mixer.temperature", "text_mixer.temperature", "position"}

    def forward(self, image: Tensor, text: Tensor) -> TwoTowerOutput:
        x = self.stem_norm(self.stem(image))
        x = x + F.gelu(self.depthwise(x))
        x = x.flatten(2).transpose(1, 2)
        x = x if "image_mixer" in self.skip else self.image_mixer(x)
        y = self.embedding(text) + self.position + self.offset.to(self.position.dtype)
        y = y if "text_mixer" in self.skip else self.text_mixer(y)
        image_features = F.normalize(self.image_out(x.mean(1)), dim=-1)
        return TwoTowerOutput(image_features, F.normalize(self.text_out(y.mean(1)), dim=-1), self.logit_scale.exp())


def batch(step: int, micro: int, size: int) -> dict[str, Tensor]:
    """The global micro-batch number `micro` of a step."""
    generator = torch.Generator().manual_seed(1000 * step + micro)
    return {
        "image": torch.randn(size, 3, PIXELS, PIXELS, generator=generator),
        "text": torch.randint(0, WORDS, (size, LENGTH), generator=generator),
    }


def global_loss(out: TwoTowerOutput) -> Tensor:
    """CLIP's loss of a whole batch in one process."""
    assert out.image_features is not None
    assert out.text_features is not None
    image_loss, _ = info_nce(out.image_features, out.text_features, out.logit_scale, 0)
    text_loss, _ = info_nce(out.text_features, out.image_features, out.logit_scale, 0)
    return (image_loss + text_loss) / 2


def make_config(**sections: dict[str, Any]) -> Config:
    """A configuration for the towers, sections given as dicts over short defaults."""
    defaults: dict[str, dict[str, Any]] = {
        "model": {"image": "metanet_debug"},
        "train": {"steps": 20, "global_batch": 8, "precision": "fp32", "seed": 3},
        "optim": {"lr": 3e-3, "eps": 1e-4, "clip_grad_norm": 0.5, "schedule": {"warmup_steps": 3}},
        "data": {"lanes": 4},
    }
    merged: dict[str, Any] = {key: defaults.get(key, {}) | sections.get(key, {}) for key in {*defaults, *sections}}
    return Config.model_validate(copy.deepcopy(merged))


def train_plainly(
    config: Config, accumulation: int | Sequence[int], steps: int, build: Any = Towers, make_batch: Any = batch
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of one PyTorch process that sees the whole global batch, without DeepSpeed and
    without our engine.

    Args:
        accumulation: micro-batches of every step, or of each.

    In bf16 the model is rounded from fp32 masters before each step, and the masters are updated with its gradients.
    """
    torch.manual_seed(config.train.seed)
    masters = build()
    model = copy.deepcopy(masters)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    groups = [{k: g[k] for k in ("params", "weight_decay")} for g in parameter_groups(masters, config)]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=config.optim.betas, eps=config.optim.eps)
    losses, norms = [], []
    for step in range(steps):
        parts = accumulation if isinstance(accumulation, int) else accumulation[step]
        total, micro = 0.0, config.train.global_batch // parts
        for index in range(parts):
            tensors = {
                k: t.to(dtype) if t.is_floating_point() else t for k, t in make_batch(step, index, micro).items()
            }
            loss = global_loss(model(**tensors))
            (loss / parts).backward()
            total += float(loss.detach()) / parts
        for parameter, master in zip(model.parameters(), masters.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        limit = config.optim.clip_grad_norm or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(masters.parameters(), limit)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        for parameter, master in zip(model.parameters(), masters.parameters(), strict=True):
            parameter.data.copy_(master.data)
        losses.append(total)
    return losses, norms
