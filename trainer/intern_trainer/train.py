"""A training run from its first line to its report, in the order in which things happen."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from intern_trainer import checkpoint, evaluate
from intern_trainer.callbacks import Callbacks
from intern_trainer.callbacks.checkpoints import Checkpoints
from intern_trainer.callbacks.data_bound import DataBound
from intern_trainer.callbacks.evaluation import Evaluation
from intern_trainer.callbacks.memory import FirstStep
from intern_trainer.callbacks.profile import Profiler
from intern_trainer.callbacks.progress import ProgressLine
from intern_trainer.callbacks.records import Records, Sink
from intern_trainer.callbacks.sinks import JsonLines, TensorBoard, WeightsAndBiases
from intern_trainer.checkpoint.agree import agreed
from intern_trainer.checkpoint.estimate import announce_slow_saves
from intern_trainer.config import ds
from intern_trainer.config.checks import batch_plan, check_world
from intern_trainer.config.load import DEFAULT_RECIPE
from intern_trainer.config.phases import Phases
from intern_trainer.config.pipeline import data_ranks
from intern_trainer.config.schema import Benchmark, Config
from intern_trainer.data import Readable, build_train_data, share
from intern_trainer.engine import Engine, build_engine
from intern_trainer.errors import ConfigError, ConfigErrors, EnvironmentFault, UserError
from intern_trainer.evaluate.results import results_entry, results_table
from intern_trainer.evaluate.samples import sample_captions
from intern_trainer.guard.watchdog import Watchdog
from intern_trainer.loop import run_steps
from intern_trainer.observe.flops import count_flops
from intern_trainer.observe.log import log_to_file, start_logging
from intern_trainer.observe.memory import Peak
from intern_trainer.observe.mfu import device_peak
from intern_trainer.observe.phases import durations, phase, show_seconds
from intern_trainer.observe.places import place
from intern_trainer.observe.start import describe_settings, describe_start
from intern_trainer.optim import learning_rate
from intern_trainer.parallel import make_grid
from intern_trainer.place import place_model
from intern_trainer.planned import expect
from intern_trainer.ranks import Ranks, init_ranks
from intern_trainer.report import write_report
from intern_trainer.resume import (
    find_checkpoint,
    forget_the_future,
    is_finished,
    name_decoder,
    roll_back,
    starting_point,
)
from intern_trainer.run_folder import RunFolder
from intern_trainer.signals import StopSignals, outlive_readers
from intern_trainer.state import State
from intern_trainer.tasks import build_task
from intern_trainer.tasks.sizes import check_picture_sizes
from intern_trainer.text import tokenizer_digest
from intern_trainer.threads import set_threads

log = logging.getLogger(__name__)


def default_run_dir(recipe: Path | None) -> Path:
    """runs/<name of the recipe>, below the current folder."""
    return Path("runs") / (recipe or DEFAULT_RECIPE).stem


def train(config: Config, run_dir: Path, new_order: bool = False) -> int:
    """Train as configured, or go on where the run in `run_dir` stopped; evaluate and report at the end. Called on
    every rank.

    Args:
        new_order: go on although the order of samples is another one than the checkpoint's.

    Returns:
        the exit code: 0, also when the run was asked to stop and is saved.

    Raises:
        UserError: anything that the user can put right.
    """
    outlive_readers()
    set_threads(config)
    with StopSignals() as signals:
        with signals.fatal():
            ranks = init_ranks()
        start_logging(ranks.rank, ranks.world_size)
        check_before_start(config, ranks)
        folder = RunFolder(run_dir)
        newest = find_checkpoint(config, folder, ranks)
        if is_finished(config, folder, newest, ranks):
            log.info("%s is finished: %d steps. Report: %s", run_dir, Phases(config).steps, folder.report)
            longer = "init.from=%s in another run.dir" if config.train.phases else "train.steps=%s"
            way = longer % (run_dir if config.train.phases else 2 * config.train.steps)
            log.info("To train longer: %s. For another run: run.dir=runs/another", way)
            return 0
        ranks.on_main(lambda: describe_start(folder, config, ranks))
        log_to_file(run_dir, ranks.rank)
        try:
            with Watchdog(config.guard, folder, ranks) as watchdog, _full_disk_in_words(folder):
                state = _train(config, folder, newest, ranks, new_order, signals, watchdog)
        except UserError as error:
            log.info("%s", error, extra={"file_only": True})
            if ranks.is_main:
                with suppress(OSError):  # on a full disk the error itself is what counts
                    folder.update_run(status="failed", error=str(error))
            raise
        if ranks.is_main and state.stop_reason:
            folder.update_run(status="unfinished", step=state.step, phases=durations)
        return 0


def check_before_start(config: Config, ranks: Ranks) -> None:
    """All that can be wrong with a configuration once the number of ranks is known, before data and model are touched.
    Collective: a file that one machine lacks is an error on every rank.

    Raises:
        ConfigErrors: what is wrong, all at once.
    """
    tokenizers = agreed(ranks, partial(_check_this_rank, config, ranks), _unreadable)
    others = [rank for rank, tokenizer in enumerate(tokenizers) if tokenizer != tokenizers[0]]
    if others:
        raise ConfigError(
            f"model.text.tokenizer={config.model.text.tokenizer} is another one on rank {others[0]} than on rank 0",
            "all ranks make the same ids of a caption",
            "copy the same files to every machine",
        )


def _check_this_rank(config: Config, ranks: Ranks) -> str:
    """Gives the digest of the tokenizer."""
    errors = [
        *check_world(config, ranks.world_size),
        *ds.agree(config.ds, config, data_ranks(config, ranks.world_size)),
    ]
    try:
        _ = build_task(config, ranks).views
        check_picture_sizes(config)
    except ConfigError as error:
        errors.append(error)
    if errors:
        raise ConfigErrors(errors)
    return tokenizer_digest(config.model.text)


def _unreadable(error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"{error.filename} cannot be read: {error.strerror}", "the configuration names it", "look at its permissions"
    )


@contextmanager
def _full_disk_in_words(folder: RunFolder) -> Iterator[None]:
    """Records and results that find the disk full are an error in words, as checkpoints are by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise EnvironmentFault(
            f"the disk is full: {error.filename or folder.path} could not be written",
            "a run writes records and results as it goes on; every checkpoint already there is whole",
            "free space, then run the same command again",
        ) from error


def _train(
    config: Config,
    folder: RunFolder,
    newest: Path | None,
    ranks: Ranks,
    new_order: bool,
    signals: StopSignals,
    watchdog: Watchdog,
) -> State:
    grid = make_grid(ranks, config.parallel.pipeline, config.parallel.chunks)
    task = build_task(config, grid.data)
    place, reader = place_model(config, task, grid)
    with phase("opening the data"):
        data = share(lambda: build_train_data(config, grid.data, task.views), grid.pipe, reader)
    try:
        full = config.log.plan == "full" or (config.log.plan == "auto" and ranks.device.type == "cuda")
        expected = ranks.on_main(lambda: expect(config, place, full))
        peak = Peak(ranks.device)
        with phase("building the model and the engine"):
            engine = build_engine(config, ranks, task.build_model, place)
        watchdog.know(engine.module)
        announce_slow_saves(engine, folder.path, ranks, saves=1 if config.checkpoint.background == "never" else 2)
        progress = starting_point(config, newest, engine, data, ranks, new_order)
        ranks.on_main(lambda: describe_settings(folder, config, ranks))
        plan = batch_plan(config, grid.data.world_size, Phases(config).at(progress.step))
        sizes = {"forward_flops": count_flops(config, task), "samples_of_a_loss": plan.of_a_loss}
        facts = {**engine.facts, **sizes}
        name_decoder(folder, data.decoder, ranks)
        if ranks.is_main:
            folder.update_run(status="running", facts=facts, error=None)
        stages = f"; {plan.accumulation} of them a step through {grid.stages} stages" if grid.stages > 1 else ""
        log.info(
            "training steps %d to %d in %s; each loss is of %s samples: %d micro-batch(es) of %d on %d rank(s)%s",
            progress.step + 1, Phases(config).steps, folder.path,
            f"{plan.of_a_loss:,}", plan.together, plan.micro, plan.world_size, stages,
        )  # fmt: skip
        rate = partial(learning_rate, config=config)
        while True:
            state = _state_at(progress, config, folder, ranks, newest, facts)
            history = forget_the_future(folder, state.step, ranks)
            first = FirstStep(engine, expected, peak)
            callbacks = Callbacks(
                [watchdog, first, *build_callbacks(config, folder, engine, data, history, ranks).members]
            )
            run_steps(task, engine, data, state, callbacks, rate, signals.requested)
            if state.rollback is None:
                break
            newest, progress = state.rollback.checkpoint, roll_back(config, folder, state, engine, ranks)
        log.info("trained %s in all; data: %s", show_seconds(state.seconds), data.report())
    finally:
        data.close()
    if state.stop_reason:
        log.info(
            "stopped by %s after step %d of %d; saved in %s. The same command goes on from there.",
            state.stop_reason, state.step, state.total_steps, state.checkpoint,
        )  # fmt: skip
    else:
        finish(config, folder, engine, state)
    engine.close()
    return state


def _state_at(
    progress: checkpoint.Progress, config: Config, folder: RunFolder, ranks: Ranks, newest: Path | None, facts: dict
) -> State:
    """The run as it goes on from `newest`, or from the beginning."""
    return State(
        config, folder.path, ranks, Phases(config).steps, progress.step, progress.samples, seconds=progress.seconds,
        checkpoint=newest, left_out=progress.left_out, bad_steps=progress.bad_steps,
        loss_statistics=progress.loss_statistics, facts=facts,
    )  # fmt: skip


def build_callbacks(
    config: Config, folder: RunFolder, engine: Engine, data: Readable, history: list[dict[str, Any]], ranks: Ranks
) -> Callbacks:
    """Everything that watches the run, in the order in which it is called: a step is recorded, evaluated, then saved
    with its evaluation.

    Args:
        history: earlier entries of evaluation.json.
    """
    scores = [{"step": entry["step"], **entry["results"]} for entry in history if entry["split"] == "validation"]

    def validate(state: State) -> dict[str, float]:
        results = evaluate_now(config, folder, engine, state, "validation", config.evaluate.validation)
        scores.append({"step": state.step, **results})
        return results

    def progress(state: State) -> checkpoint.Progress:
        return checkpoint.Progress(
            state.step, state.samples, state.seconds, state.metrics.get("loss", 0.0), state.grad_norm,
            data.fingerprint, scores, tokenizer_digest(config.model.text), state.left_out, state.bad_steps,
            state.loss_statistics,
        )  # fmt: skip

    records = Records(sinks(config, folder, ranks), device_peak(ranks.device, config.train.precision))
    profilers = [Profiler(config.log.profile, folder.profile)] if config.log.profile else []
    checkpoints = Checkpoints(checkpoint.Saver(engine, folder.path, ranks, config), progress)
    return Callbacks([records, *profilers, Evaluation(validate), checkpoints])


def sinks(config: Config, folder: RunFolder, ranks: Ranks) -> list[Sink]:
    """Where records go: nowhere but on rank 0."""
    if not ranks.is_main:
        return []
    places: list[Sink] = [ProgressLine(), DataBound(), JsonLines(folder.metrics), TensorBoard(folder.tensorboard)]
    return [*places, WeightsAndBiases(config.log.wandb, folder.path)] if config.log.wandb else places


@place("evaluate")
def evaluate_now(
    config: Config, folder: RunFolder, engine: Engine, state: State, split: str, benchmark: Benchmark
) -> dict[str, float]:
    """Evaluate the engine's model as it is, with the moving average where there is one; keep and show the results.
    Collective.
    """
    weights = best_weights(config)
    with phase(f"evaluating {split}"), engine.weights(weights):
        results = evaluate.run(engine, benchmark, config, engine.ranks)
    entry = results_entry(split, state.step, weights, results)
    state.ranks.on_main(lambda: folder.add_evaluation(entry))
    log.info(results_table(entry))
    return entry["results"]


def best_weights(config: Config) -> Literal["ema", "raw"]:
    """The moving average where the run keeps one."""
    return "ema" if config.train.ema_decay else "raw"


def finish(config: Config, folder: RunFolder, engine: Engine, state: State) -> None:
    """Test evaluation, pictures with their captions, report. Collective."""
    if not state.ranks.on_main(lambda: folder.was_evaluated("validation", state.step)):  # stopped at the last step
        evaluate_now(config, folder, engine, state, "validation", config.evaluate.validation)
    evaluate_now(config, folder, engine, state, "test", config.evaluate.test)
    if config.evaluate.test.retrieval:
        with phase("captioning test pictures"), engine.weights(best_weights(config)):
            samples = sample_captions(engine, config.evaluate.test.retrieval[0], config, engine.ranks)
        state.ranks.on_main(lambda: folder.write(folder.samples, samples))
    with phase("writing the report"):
        if state.ranks.is_main:
            folder.update_run(status="finished", step=state.step, phases=durations)
        state.ranks.on_main(lambda: write_report(folder))
    log.info("done: %d steps. Report: %s  Checkpoint: %s", state.step, folder.report, state.checkpoint)
