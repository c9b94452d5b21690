"""What a run will take, before it is launched: memory, traffic, time, failures. No GPU, no process group, seconds."""

from __future__ import annotations

from dataclasses import dataclass

from intern_trainer.config.pipeline import data_ranks
from intern_trainer.config.schema import Config
from intern_trainer.plan.built import HasModel
from intern_trainer.plan.cut import Cut, check_cut, cut_of
from intern_trainer.plan.estimate import Estimate, Estimator
from intern_trainer.plan.fit import Fits, advice, best, fits
from intern_trainer.plan.goodput import daly, goodput, young
from intern_trainer.plan.hardware import Cluster, find_device
from intern_trainer.plan.model import Weights
from intern_trainer.plan.saves import Saves, saves_of
from intern_trainer.plan.settings import settings_of

__all__ = ["Cluster", "Cut", "Failures", "Plan", "Stage", "check_cut", "cut_of", "find_device", "plan"]


@dataclass(frozen=True)
class Stage:
    """A part of the model and the ranks that hold it, which divide its state among them. Without a pipeline there is
    one, of all ranks."""

    name: str
    ranks: range
    weights: Weights
    estimate: Estimate


@dataclass(frozen=True)
class Failures:
    """Seconds. Attributes:
    between: mean time between failures of the run. save, restart: what each costs; after a failure the steps are done
        again that were made while the newest save was still being written.
    young, interval: best computing time between saves, by Young and by Daly. steps: the latter in steps.
    goodput: share of the time that is not lost, at that interval.
    """

    between: float
    save: float
    restart: float
    young: float
    interval: float
    steps: int
    goodput: float


@dataclass(frozen=True)
class Plan:
    """Attributes:
    weights: of the whole model. cut: of the pipeline, if there is one. stages: of the pipeline. paces: of each phase of
        the run, in order (side of the picture, share of the samples, estimate). samples: of the whole run. days: for
        them, failures included.
    """

    config: Config
    cluster: Cluster
    weights: Weights
    cut: Cut | None
    stages: list[Stage]
    paces: list[tuple[int, float, Estimate]]
    flops: dict[int, int]
    samples: float
    saves: Saves
    failures: Failures
    fits: Fits
    recommendation: str

    @property
    def days(self) -> float:
        return _days(self.samples, self.paces, self.failures)


def plan(
    config: Config,
    task: HasModel,
    cluster: Cluster,
    recompute: str = "none",
    samples: float | None = None,
    save_seconds: float | None = None,
) -> Plan:
    """Work out what `config` takes on `cluster`.

    Args:
        task: of that configuration; asked for its model and its views alone.
        recompute: `none`, `selective` or `full`.
        samples: of the whole run; None: the recipe's.
        save_seconds: that a save was measured to take; None: from its bytes and the disk's speed.

    Raises:
        ConfigError: the batch cannot be divided over the devices.
    """
    settings = settings_of(config)
    ranks = data_ranks(config, cluster.devices)
    estimator = Estimator(config, task, config.parallel.sync_batch_norm and ranks > 1)
    whole = estimator.spans[-1].end_sample
    paces = [
        (
            span.image_size,
            span.steps * span.global_batch / whole,
            estimator.estimate(span, settings, recompute, cluster),
        )
        for span in estimator.spans
    ]
    widest = max(range(len(paces)), key=lambda i: paces[i][2].memory.peak)
    span, estimate = estimator.spans[widest], paces[widest][2]
    saves = saves_of(config, estimator.weights, estimate, cluster, save_seconds)
    failures = _failures(saves, estimate, cluster)
    samples = float(samples or whole)
    cut = estimator.cut(recompute, cluster) if config.parallel.pipeline > 1 else None
    stages = [
        Stage(
            f"stage {part.stage}" if cut else "model",
            range(part.stage * ranks, (part.stage + 1) * ranks),
            part.weights,
            e,
        )
        for part, e in zip(
            estimator.parts(recompute, cluster),
            estimator.estimates(span, settings, recompute, cluster),
            strict=True,
        )
    ]
    chosen = best(estimator, span, settings, cluster)
    changed = [(side, share, chosen if i == widest else e) for i, (side, share, e) in enumerate(paces)]
    days = _days(samples, [(side, share, e) for side, share, e in changed if e is not None], failures)
    return Plan(
        config, cluster, estimator.weights, cut, stages, paces,
        estimator.flops, samples, saves, failures, fits(estimator, span, settings, recompute, cluster),
        advice(chosen, days, samples, cluster),
    )  # fmt: skip


def _days(samples: float, paces: list[tuple[int, float, Estimate]], failures: Failures) -> float:
    seconds = sum(share * samples / estimate.pace.images_per_second for _, share, estimate in paces)
    return seconds / failures.goodput / 86400


def _failures(saves: Saves, estimate: Estimate, cluster: Cluster) -> Failures:
    between, save = cluster.mtbf_hours * 3600 / cluster.devices, saves.waits
    unwritten = saves.seconds if saves.in_background else 0.0
    restart = cluster.restart_seconds + saves.state / (cluster.disk * cluster.nodes) + unwritten
    interval = max(daly(save, between), unwritten)  # one save at a time
    return Failures(
        between, save, restart, young(save, between), interval,
        max(1, round(interval / estimate.pace.step)), goodput(interval, save, restart, between),
    )  # fmt: skip
