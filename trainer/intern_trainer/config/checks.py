"""Rules across sections of a configuration. All are looked at, none stops at the first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from intern_trainer.config.losses import Declip, Loss
from intern_trainer.config.phases import Phases, Span
from intern_trainer.config.pipeline import check_pipeline, data_ranks
from intern_trainer.config.schema import Benchmark, Config
from intern_trainer.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided: `micro * accumulation * world_size = global_batch`; `together` micro-batches share
    one loss. `world_size` is that of one stage, the number of data-parallel ranks."""

    micro: int
    accumulation: int
    world_size: int
    together: int = 1

    @property
    def per_rank(self) -> int:
        """Samples of one optimizer step on one rank."""
        return self.micro * self.accumulation

    @property
    def of_a_loss(self) -> int:
        """Samples of one loss, on all ranks."""
        return self.micro * self.together * self.world_size


def check(config: Config) -> list[ConfigError]:
    """What can be known without the number of ranks."""
    return [
        *_check_batch(config),
        *_check_phases(config),
        *_check_schedule(config),
        *_check_model(config),
        *_check_captions(config),
        *_check_loss(config),
        *check_pipeline(config),
        *_check_local(config),
        *_check_evaluation(config),
        *_check_guard(config),
    ]


def check_world(config: Config, world_size: int) -> list[ConfigError]:
    """What depends on the number of ranks, of all stages together."""
    stages = config.parallel.pipeline
    if world_size % stages:
        return [
            ConfigError(
                f"parallel.pipeline {stages} on {world_size} rank(s)",
                "every stage has equally many ranks",
                f"parallel.pipeline={_largest_divisor(world_size, stages)}, or another number of ranks",
            )
        ]
    return check_batches(config, data_ranks(config, world_size))


def check_batches(config: Config, world_size: int) -> list[ConfigError]:
    """Whether the batches of all phases can be divided over so many data-parallel ranks."""
    return [error for batch in _batches(config) for error in _check_ranks(batch, world_size, config)]


def _check_ranks(batch: _Batch, world_size: int, config: Config) -> Iterator[ConfigError]:
    size, micro, together = batch.size, batch.micro, config.train.cached_micro_batches or 1
    stages, interleaved = config.parallel.pipeline, config.parallel.schedule == "interleaved"
    if size % world_size:
        yield ConfigError(
            f"{batch.key} {size} over {world_size} ranks leaves {size % world_size} samples",
            "the world size divides the global batch",
            f"{batch.key}={_nearest_multiple(size, world_size)}, or another number of ranks",
        )
    elif micro and (size // world_size) % micro:
        per_rank = size // world_size
        yield ConfigError(
            f"{batch.micro_key} {micro} does not divide the {per_rank} samples a rank "
            f"({batch.key} {size} / {world_size} ranks)",
            "global_batch = micro_batch x accumulation x ranks",
            f"{batch.micro_key}={_largest_divisor(per_rank, micro)}",
        )
    elif (size // world_size) // (micro or size // world_size) % together:
        per_rank = size // world_size
        accumulation = per_rank // (micro or per_rank)
        whole, fewer = per_rank % together == 0, _largest_divisor(accumulation, together)
        fixes = [f"{batch.micro_key}={per_rank // together}"] if whole else []
        fixes += [f"train.cached_micro_batches={fewer}" if fewer > 1 else "leave it out"]
        yield ConfigError(
            f"train.cached_micro_batches {together} does not divide the {accumulation} micro-batches a rank "
            f"({batch.key} {size} / {world_size} ranks / {batch.micro_key} {micro or per_rank})",
            "each micro-batch belongs to one loss, and every loss is of equally many",
            ", or ".join(fixes),
        )
    elif interleaved and (size // world_size) // (micro or size // world_size) % stages:
        per_rank = size // world_size
        yield ConfigError(
            f"parallel.schedule is interleaved with {per_rank // (micro or per_rank)} micro-batches a step in {stages} "
            "stages",
            "micro-batches go through the chunks in groups of as many as there are stages",
            f"{batch.micro_key}={per_rank // stages}" if per_rank % stages == 0 else "parallel.schedule=1f1b",
        )


def batch_plan(config: Config, world_size: int, span: Span | None = None) -> BatchPlan:
    """The division of the global batch over data-parallel ranks and micro-batches; that of a phase's steps where one is
    given.

    Args:
        world_size: ranks of one stage; without a pipeline, all.

    Raises:
        ConfigError: the world size or the micro-batch does not divide it.
    """
    errors = check_batches(config, world_size)
    if errors:
        raise errors[0]
    batch = span or config.train
    per_rank = batch.global_batch // world_size
    micro = batch.micro_batch or per_rank
    return BatchPlan(micro, per_rank // micro, world_size, config.train.cached_micro_batches or 1)


@dataclass(frozen=True)
class _Batch:
    """A global batch that the run may take, and the keys it comes from."""

    key: str
    size: int
    micro_key: str
    micro: int | None


def _batches(config: Config) -> list[_Batch]:
    """The run's own, and those that phases change."""
    train = config.train
    found = [_Batch("train.global_batch", train.global_batch, "train.micro_batch", train.micro_batch)]
    for number, phase in enumerate(train.phases):
        if phase.global_batch or phase.micro_batch:
            here = f"train.phases.{number}"
            found.append(
                _Batch(
                    f"{here}.global_batch" if phase.global_batch else "train.global_batch",
                    phase.global_batch or train.global_batch,
                    f"{here}.micro_batch" if phase.micro_batch else "train.micro_batch",
                    phase.micro_batch or train.micro_batch,
                )
            )
    return found


def _check_batch(config: Config) -> Iterator[ConfigError]:
    lanes = config.data.lanes
    for batch in {batch.key: batch for batch in _batches(config)}.values():
        if batch.size % lanes:
            fewer, near = _largest_divisor(batch.size, lanes), _nearest_multiple(batch.size, lanes)
            yield ConfigError(
                f"data.lanes {lanes} does not divide {batch.key} {batch.size}",
                "each lane gives the same number of samples to every global batch",
                f"data.lanes={fewer}, or {batch.key}={near}",
            )


def _check_phases(config: Config) -> Iterator[ConfigError]:
    ends = [phase.until for phase in config.train.phases]
    for number, (before, end) in enumerate(pairwise(ends), 1):
        if end <= before:
            yield ConfigError(
                f"train.phases.{number}.until is {end:g} after {before:g}",
                "phases follow each other: each ends later than the one before",
                f"train.phases.{number}.until={(1 + before) / 2:g}, or leave that phase out",
            )


def _check_schedule(config: Config) -> Iterator[ConfigError]:
    steps, schedule, profile = config.train.steps, config.optim.schedule, config.log.profile
    taken = Phases(config).steps
    if schedule.warmup_steps > steps:
        yield ConfigError(
            f"optim.schedule.warmup_steps {schedule.warmup_steps} is more than train.steps {steps}",
            "the warm-up is part of the run",
            f"optim.schedule.warmup_steps={steps // 10}",
        )
    for key, way in (("start_lr", "rises from start_lr to optim.lr"), ("min_lr", "falls from optim.lr to min_lr")):
        if getattr(schedule, key) > config.optim.lr:
            yield ConfigError(
                f"optim.schedule.{key} {getattr(schedule, key)} is more than optim.lr {config.optim.lr}",
                f"the learning rate {way}",
                f"optim.schedule.{key}={config.optim.lr / 100:g}",
            )
    if profile and not profile.first <= profile.last <= taken:
        yield ConfigError(
            f"log.profile is steps {profile.first} to {profile.last} of {taken}",
            "first <= last <= the run's steps",
            "log.profile={first: 5, last: 8}",
        )


def _check_model(config: Config) -> Iterator[ConfigError]:
    text, augment = config.model.text, config.data.augment
    start, least, most = config.loss.initial_scale, config.model.min_logit_scale, config.model.max_logit_scale
    if start and not least <= start <= most:
        yield ConfigError(
            f"loss.initial_scale {start:g} is not between model.min_logit_scale {least:g} and model.max_logit_scale "
            f"{most:g}",
            "the scale begins within its bounds",
            f"loss.initial_scale={min(max(start, least), most):g}",
        )
    if config.model.min_logit_scale > config.model.max_logit_scale:
        yield ConfigError(
            f"model.min_logit_scale {config.model.min_logit_scale:g} is more than model.max_logit_scale "
            f"{config.model.max_logit_scale:g}",
            "they are bounds of the same factor",
            f"model.min_logit_scale={config.model.max_logit_scale / 5:g}",
        )
    if text.width % text.heads:
        yield ConfigError(
            f"model.text.width {text.width} over model.text.heads {text.heads} is not whole",
            "each attention head has width / heads channels",
            f"model.text.heads={_largest_divisor(text.width, text.heads)}",
        )
    for key in ("crop_scale", "crop_ratio", "blur_sigma"):
        low, high = getattr(augment, key)
        if not 0 < low <= high:
            yield ConfigError(
                f"data.augment.{key} is [{low}, {high}]", "0 < low <= high", f"data.augment.{key}=[0.5, 1.0]"
            )
    decoder = config.data.decoder
    packages = {"simplejpeg": ("simplejpeg",), "dali": ("nvidia.dali", "simplejpeg")}.get(decoder, ())
    missing = [package for package in packages if not _installed(package)]
    if missing:
        names = " ".join("nvidia-dali-cuda130" if package == "nvidia.dali" else package for package in missing)
        yield ConfigError(
            f"data.decoder is {decoder}", f"{names} must be installed", f"pip install {names}, or data.decoder=auto"
        )
    if decoder == "dali" and (augment.jitter_probability or augment.grey or augment.blur):
        yield ConfigError(
            f"data.decoder is dali and data.augment (policy {augment.policy}) changes colours or blurs",
            "DALI makes crops and flips alone",
            "data.decoder=auto, or jitter_probability, grey and blur 0 in data.augment",
        )
    if any(s <= 0 for s in config.data.std):
        yield ConfigError(f"data.std is {list(config.data.std)}", "pictures are divided by it", "give positive numbers")


def _check_captions(config: Config) -> Iterator[ConfigError]:
    data, tokenizer = config.data, config.model.text.tokenizer
    if tokenizer != "clip" and not Path(tokenizer, "tokenizer.json").is_file():
        yield ConfigError(
            f"model.text.tokenizer={tokenizer} holds no tokenizer.json",
            "a tokenizer is `clip` or a folder of Hugging Face's tokenizer files; none is downloaded",
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER), or intern-trainer data tokenizer",
        )
    for key in data.caption_keys:
        if "{language}" in key and not data.languages:
            yield ConfigError(
                f"data.caption_keys has {key}, and data.languages is empty",
                "{language} stands for each of data.languages",
                "data.languages={en: 1}, say",
            )


def _check_loss(config: Config) -> Iterator[ConfigError]:
    loss, drop = config.loss, config.data.augment.drop_tokens
    if loss.kind != "declip" and loss.declip != Declip():
        yield ConfigError(
            f"loss.declip is set, and loss.kind is {loss.kind}", "its terms are DeCLIP's", "loss.kind=declip"
        )
    if loss.kind != "siglip" and loss.initial_bias != Loss().initial_bias:
        yield ConfigError(
            f"loss.initial_bias is set, and loss.kind is {loss.kind}", "the bias is SigLIP's", "loss.kind=siglip"
        )
    if loss.kind == "declip" and drop:
        yield ConfigError(
            f"data.augment.drop_tokens is {drop}, and loss.kind is declip",
            "DeCLIP masks and leaves out words of its own",
            "data.augment.drop_tokens=0",
        )


def _check_local(config: Config) -> Iterator[ConfigError]:
    if config.task != "local":
        return
    if config.loss.kind == "declip":
        yield ConfigError(
            "task is local, and loss.kind is declip",
            "beside the local loss goes the contrastive one of a single view",
            "loss.kind=clip or siglip; a run of DeCLIP can be gone on from, too",
        )
    if config.model.image_options.get("patch_drop_rate"):
        yield ConfigError(
            "task is local, and model.image_options drops patches",
            "the local loss needs the whole map",
            "model.image_options without patch_drop_rate",
        )


def _check_evaluation(config: Config) -> Iterator[ConfigError]:
    evaluate, checkpoint = config.evaluate, config.checkpoint
    for split in ("validation", "test"):
        names = [e.name for e in _entries(getattr(evaluate, split))]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield ConfigError(
                f"evaluate.{split} has {names.count(name)} entries named {name}",
                "results are kept by name",
                "give each entry a `name` of its own",
            )
    names = [e.name for e in _entries(evaluate.validation)]
    chosen_by = checkpoint.best_metric.split("/")[0]
    if checkpoint.keep_best and evaluate.every and chosen_by not in names:
        yield ConfigError(
            f"checkpoint.best_metric {checkpoint.best_metric} is not among the results of "
            f"evaluate.validation ({', '.join(names)})",
            "the best checkpoint is chosen by an evaluation that runs in training",
            f"checkpoint.best_metric={names[0]}/..." if names else "checkpoint.keep_best=0",
        )


def _check_guard(config: Config) -> Iterator[ConfigError]:
    guard, kept = config.guard, config.checkpoint.every * config.checkpoint.keep_last
    if guard.slow_seconds < guard.hang_seconds:
        yield ConfigError(
            f"guard.slow_seconds {guard.slow_seconds:g} is less than guard.hang_seconds {guard.hang_seconds:g}",
            "what may take longer than a step has the higher limit",
            f"guard.slow_seconds={2 * guard.hang_seconds:g}",
        )
    if guard.spike and guard.spike.back > kept:
        yield ConfigError(
            f"guard.spike.back is {guard.spike.back}, and checkpoints reach {kept} steps back "
            f"(checkpoint.every {config.checkpoint.every} x checkpoint.keep_last {config.checkpoint.keep_last})",
            "the run goes back to a checkpoint from before the steps that it takes back",
            f"guard.spike.back={kept}, or a larger checkpoint.keep_last",
        )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # nor what it lies in
        return False


def _entries(benchmark: Benchmark) -> list:
    return [*benchmark.zero_shot, *benchmark.retrieval]


def _largest_divisor(number: int, at_most: int) -> int:
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)


def _nearest_multiple(number: int, of: int) -> int:
    return max(of, round(number / of) * of)
