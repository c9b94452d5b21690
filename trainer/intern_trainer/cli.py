"""The command line: `intern-trainer VERB ...`; `trainer/run.py ...` is the same with `train` as its default verb."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from intern_trainer import cli_data, cli_plan
from intern_trainer.errors import UserError

PATIENCE = timedelta(seconds=3)
"""How long a rank with an error waits for the others' words."""
VERBS = ("train", "plan", "eval", "probe", "export", "report", "data")

_SETTINGS = """\
settings:
  KEY=VALUE overrides a key of the configuration, such as
    optim.lr=5e-4  train.steps=2000  data.train=/data/cc12m/{00000..01242}.tar  log.wandb.project=intern
  VALUE is YAML. A key that holds a list may be given several times.
  Every key is explained in trainer/intern_trainer/config/schema.py.
"""
_TRAIN = """\
examples:
  the default recipe, one process
    python trainer/run.py
  two ranks with ZeRO-3 (CPU ranks on a machine without GPUs)
    deepspeed --num_gpus 2 trainer/run.py --ds_config configs/ds/zero3.json
  own data
    torchrun --nproc_per_node 8 trainer/run.py --config configs/stage1/b4.yaml \\
        --ds_config configs/ds/zero2.json data.train=/data/{000..199}.tar

The run's folder is run.dir, or runs/<name of the recipe>. The same command goes on from the newest good checkpoint
there. Ctrl-C, SIGTERM and SIGUSR1 save at the next step and end the run.
"""
_EVAL = """\
examples:
  intern-trainer eval runs/debug
  intern-trainer eval runs/b4 --weights raw --checkpoint runs/b4/checkpoints/step-00020000
  torchrun --nproc_per_node 8 trainer/run.py eval runs/b4 \\
      'evaluate.test={zero_shot: {data: /data/imagenet/val, name: imagenet}}'

Results go to RUN/evaluation.json with split, step, weights, counts and chance levels.
"""


_PROBE = """\
examples:
  intern-trainer probe runs/debug --task segmentation
  torchrun --nproc_per_node 2 trainer/run.py probe runs/debug --task detection

Scenes are cut-outs of the embedded pictures on backgrounds made by seed; those to fit on are of the training split,
those to judge by of the test split. Results go to RUN/probes.json. They compare under the same seed and sizes only.
"""


def parser() -> argparse.ArgumentParser:
    """Arguments of all verbs."""

    def add(verb: str, summary: str, epilog: str = "") -> argparse.ArgumentParser:
        text = argparse.RawDescriptionHelpFormatter
        return verbs.add_parser(verb, help=summary, description=summary, epilog=epilog, formatter_class=text)

    def add_run(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/debug")

    def add_weights(verb: argparse.ArgumentParser) -> None:
        verb.add_argument(
            "--weights",
            choices=("ema", "raw"),
            help="moving average or last weights; default: the average if it was kept",
        )
        verb.add_argument(
            "--checkpoint", type=Path, metavar="DIR", help="RUN/checkpoints/step-...; default: the newest good one"
        )

    whole = argparse.ArgumentParser(
        prog="intern-trainer", description="Trains, evaluates and exports INTERN's vision models."
    )
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = add("train", "train a recipe, or go on with it", _SETTINGS + "\n" + _TRAIN)
    train.add_argument("--config", type=Path, metavar="FILE", help="recipe; default: configs/stage1/debug.yaml")
    train.add_argument(
        "--ds_config",
        "--deepspeed_config",
        type=Path,
        metavar="FILE",
        help="DeepSpeed's own JSON; default: ZeRO stage 0",
    )
    train.add_argument(
        "--deepspeed",
        action="store_true",
        help="accepted because many launch scripts pass it; DeepSpeed is always used",
    )
    train.add_argument(
        "--new-order",
        action="store_true",
        help="go on although the order of the data is another one than the checkpoint's",
    )
    train.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides, see below")

    cli_plan.add_arguments(
        add("plan", "memory, speed and traffic of a recipe before it is launched", _SETTINGS + "\n" + cli_plan.EPILOG)
    )

    evaluate = add(
        "eval", "evaluate a run's model on the test benchmark (or --split validation)", _SETTINGS + "\n" + _EVAL
    )
    add_run(evaluate)
    add_weights(evaluate)
    evaluate.add_argument(
        "--split", choices=("test", "validation"), default="test", help="which of evaluate.test, evaluate.validation"
    )
    evaluate.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides, see below")

    probe = add(
        "probe", "judge a run's frozen image tower by what a small head reads off its maps", _SETTINGS + "\n" + _PROBE
    )
    add_run(probe)
    add_weights(probe)
    probe.add_argument("--task", choices=("segmentation", "detection"), required=True, help="what the head learns")
    probe.add_argument("--seed", type=int, default=0, metavar="N", help="of scenes, batches and the head (default 0)")
    probe.add_argument("--train", type=int, default=1024, metavar="N", help="scenes to fit the head on (default 1024)")
    probe.add_argument("--test", type=int, default=384, metavar="N", help="scenes to judge it by (default 384)")
    probe.add_argument("--steps", type=int, default=400, metavar="N", help="steps of the head's training (default 400)")
    probe.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides, see above")

    export = add("export", "export a run's model to a folder that Hugging Face transformers loads")
    add_run(export)
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    add_weights(export)

    report = add("report", "write RUN/report.html again from what the run's folder holds")
    add_run(report)

    cli_data.add_verbs(add("data", "tools for shards: index, stats, check, preview, tokenizer, shard"))
    return whole


def main(arguments: Sequence[str] | None = None, default_verb: str | None = None) -> int:
    """Run one command; gives the exit code. A user's mistake is a message on stderr, never a stack trace."""
    given = [a for a in (sys.argv[1:] if arguments is None else arguments) if not a.startswith("--local_rank=")]
    if default_verb and (not given or given[0] not in VERBS):
        given = [default_verb, *given]
    chosen = _parse(given)
    try:
        return _run(chosen)
    except UserError as error:
        _show(error)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to be told
        return 1


def _parse(given: list[str]) -> argparse.Namespace:
    """Options and settings in any order: argparse itself takes settings only in one piece."""
    chosen, rest = parser().parse_known_args(given)
    wrong = [argument for argument in rest if argument.startswith("-") or not hasattr(chosen, "settings")]
    if wrong:
        parser().error(f"unknown argument {' '.join(wrong)} (see intern-trainer {chosen.verb} --help)")
    if rest:
        chosen.settings = [*chosen.settings, *rest]
    return chosen


def _run(chosen: argparse.Namespace) -> int:
    # imports wait for their verb: a wrong setting is told in a fraction of a second, before torch is loaded
    from intern_trainer.config.load import load_config

    if chosen.verb == "train":
        config = load_config(chosen.config, chosen.settings, chosen.ds_config)
        from intern_trainer.train import default_run_dir, train

        return train(config, config.run.dir or default_run_dir(chosen.config), new_order=chosen.new_order)
    if chosen.verb == "plan":
        return cli_plan.run(chosen)
    if chosen.verb == "eval":
        from intern_trainer.run_folder import RunFolder

        folder = RunFolder.existing(chosen.run)
        config = load_config(folder.config, [*folder.settings(), *chosen.settings])
        from intern_trainer.evaluate.stored import evaluate_run

        evaluate_run(folder, config, chosen.split, chosen.weights, chosen.checkpoint)
        return 0
    if chosen.verb == "probe":
        from intern_trainer.run_folder import RunFolder

        folder = RunFolder.existing(chosen.run)
        config = load_config(folder.config, [*folder.settings(), *chosen.settings])
        from intern_trainer.evaluate.probes.stored import probe_run

        sizes = {key: getattr(chosen, key) for key in ("seed", "train", "test", "steps")}
        probe_run(folder, config, chosen.task, sizes, chosen.weights, chosen.checkpoint)
        return 0
    if chosen.verb == "export":
        from intern_trainer.export import export_run

        print(export_run(chosen.run, chosen.to, weights=chosen.weights, checkpoint=chosen.checkpoint))
        return 0
    if chosen.verb == "report":
        from intern_trainer.report import write_report
        from intern_trainer.run_folder import RunFolder

        print(write_report(RunFolder.existing(chosen.run)))
        return 0
    return cli_data.run(chosen)


def _show(error: UserError) -> None:
    """Print an error once, though every rank may have raised it; and give the others time to speak before we exit, for
    launchers end all ranks when one has ended with an error."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        _print_error(error)
    elif _process_group_exists():
        _print_once(error, rank, world_size)
    elif rank == 0:
        _print_error(error)
    else:  # a mistake in the settings, which rank 0 finds as well
        time.sleep(PATIENCE.total_seconds())


def _print_error(error: UserError) -> None:
    print(f"\n{error}", file=sys.stderr, flush=True)


def _print_once(error: UserError, rank: int, world_size: int) -> None:
    """Print the error if no other rank has printed the same. Not a collective: some ranks may not have failed."""
    from torch.distributed import distributed_c10d

    first = True  # where the store has gone with its owner, better twice than not at all
    with suppress(RuntimeError):
        store = distributed_c10d._get_default_store()
        first = store.add(f"said/{error}", 1) == 1
    if first:
        _print_error(error)
    with suppress(RuntimeError):
        store.set(f"told/{rank}", "")
        store.wait([f"told/{other}" for other in range(world_size)], PATIENCE)


def _process_group_exists() -> bool:
    if "torch" not in sys.modules:
        return False
    import torch.distributed

    return torch.distributed.is_initialized()


if __name__ == "__main__":
    sys.exit(main())
