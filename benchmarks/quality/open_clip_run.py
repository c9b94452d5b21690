"""A run of open_clip's own trainer on our towers and data, judged by our evaluator.

What its options do not have: mirror images, a smallest learning rate, and a sampler over epochs (it takes the first
`EVERY` batches of each freshly shuffled pass). All else is the recipe's.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import torch
from intern_trainer import evaluate
from intern_trainer.config.load import load_config
from intern_trainer.config.schema import Config
from intern_trainer.data.embedded import shards
from intern_trainer.tasks import build_task
from intern_trainer.weight_sources import file_weights
from safetensors.torch import save_file

from benchmarks.quality.curve import Curve
from benchmarks.quality.our_run import ALONE, EVERY, REPOSITORY, Spent, environment, score, settings

NAME = "towers"


def curve(recipe: Path, seed: int, run_dir: Path) -> Curve:
    """Train, in a process of its own, unless it is done; each checkpoint is one point, and is then removed."""
    kept = run_dir / "curve.json"
    if not kept.is_file():
        shutil.rmtree(run_dir, ignore_errors=True)  # a run that was cut off begins again
        run_dir.mkdir(parents=True)
        config = load_config(recipe, settings(seed))
        write_shards(run_dir / "shards")
        (run_dir / f"{NAME}.json").write_text(json.dumps(model_config(config)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.quality.launch", *arguments(config, seed, run_dir)]
        print("+", *command, flush=True)
        subprocess.run(command, cwd=REPOSITORY, check=True, env=environment(), stdout=subprocess.DEVNULL)
        kept.write_text(json.dumps(read(config, run_dir), indent=1), encoding="utf-8")
        shutil.rmtree(run_dir / "shards")
        shutil.rmtree(run_dir / "run" / "checkpoints")
    points: Curve = json.loads(kept.read_text(encoding="utf-8"))
    return points


def model_config(config: Config) -> dict[str, Any]:
    """Our towers in open_clip's words; the image tower is known to timm once intern_zoo is imported."""
    model = config.model
    return {
        "embed_dim": model.embed_dim,
        "vision_cfg": {
            "timm_model_name": model.image, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear",
            "image_size": model.image_size,
        },
        "text_cfg": {
            "context_length": model.text.context_length, "vocab_size": 49408, "width": model.text.width,
            "heads": model.text.heads, "layers": model.text.layers,
        },
    }  # fmt: skip


def arguments(config: Config, seed: int, run_dir: Path) -> list[str]:
    """The recipe as open_clip_train's arguments; what it calls an epoch is `EVERY` steps."""
    train, optim, augment = config.train, config.optim, config.data.augment
    assert train.steps % EVERY == 0
    options = {
        "model": NAME, "train-data": f"{run_dir}/shards/{{00000..{len(shards('train')) - 1:05d}}}.tar",
        "train-num-samples": EVERY * train.global_batch, "dataset-type": "webdataset", "workers": 1,
        "batch-size": train.global_batch, "epochs": train.steps // EVERY, "lr": optim.lr, "beta1": optim.betas[0],
        "beta2": optim.betas[1], "eps": optim.eps, "wd": optim.weight_decay, "warmup": optim.schedule.warmup_steps,
        "grad-clip-norm": optim.clip_grad_norm, "precision": train.precision, "device": "cpu", "seed": seed,
        "save-frequency": 1, "logs": run_dir, "name": "run",
    }  # fmt: skip
    words = [str(run_dir / f"{NAME}.json")]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return [*words, "--aug-cfg", f"scale=({augment.crop_scale[0]},{augment.crop_scale[1]})"]


def write_shards(folder: Path) -> None:
    """The embedded training shards with the caption as a member of its own, as open_clip's reader wants it."""
    folder.mkdir()
    for number, shard in enumerate(shards("train")):
        with tarfile.open(shard) as source, tarfile.open(folder / f"{number:05d}.tar", "w") as target:
            for member in source:
                file = source.extractfile(member)
                assert file is not None
                content = file.read()
                if member.name.endswith(".json"):
                    content = json.loads(content)["caption"].encode()
                    member.name = member.name.removesuffix(".json") + ".txt"
                    member.size = len(content)
                target.addfile(member, io.BytesIO(content))


def read(config: Config, run_dir: Path) -> Curve:
    """Each checkpoint judged; seconds are by the clock from the first step on, with saving."""
    run, spent = run_dir / "run", Spent(config)
    began = (run / "params.txt").stat().st_mtime
    points = []
    for number in range(1, config.train.steps // EVERY + 1):
        file = run / "checkpoints" / f"epoch_{number}.pt"
        flops = spent.at(number * EVERY)
        points.append(
            {
                "samples": float(number * EVERY * config.train.global_batch),
                "flops": flops,
                "padded_flops": flops,
                "seconds": file.stat().st_mtime - began,
                "score": score(judged(file, config)),
            }
        )
    return points


def judged(file: Path, config: Config) -> dict[str, float]:
    """Our evaluator's results for a checkpoint of open_clip's trainer."""
    converted = file.with_suffix(".safetensors")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, converted)
    results = evaluate.run(towers(converted, config).eval(), config.evaluate.validation, config, ALONE)
    converted.unlink()
    return results


def towers(file: Path, config: Config) -> torch.nn.Module:
    """Our model with open_clip's weights; every tensor of the one is in the other."""
    weights, model = file_weights(file, config), build_task(config, ALONE).build_model()
    model.load_state_dict({name: weights.makers[name]().reshape(shape) for name, shape in weights.shapes.items()})
    return model
