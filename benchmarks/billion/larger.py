"""Ten billion parameters on a machine that could not hold them: constructed on meta, planned, cut, constructed as a
launch does it, and the largest weights made one after another. For a process of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from intern_trainer.cli_plan import plan_recipe
from intern_trainer.config.load import DEFAULT_RECIPE, load_config
from intern_trainer.engine.deferred import Deferred
from intern_trainer.heap import give_back
from intern_trainer.plan import Cluster, find_device
from intern_trainer.ranks import Ranks
from intern_trainer.tasks import build_task

from benchmarks.billion.watch import stretch

GPUS, STAGES, PIECES = 128, 8, 8
RECIPE, DS_CONFIG = DEFAULT_RECIPE.with_name("10b.yaml"), DEFAULT_RECIPE.parents[1] / "ds" / "zero3.json"


def ten_billion(settings: Sequence[str]) -> dict[str, Any]:
    """Seconds, and bytes of memory beyond what the process held before.

    Args:
        settings: overrides of configs/stage1/10b.yaml.
    """
    config = load_config(RECIPE, list(settings), DS_CONFIG)
    task = build_task(config, Ranks(0, GPUS, 0, torch.device("cpu")))
    with stretch() as on_meta, torch.device("meta"):
        model: Any = task.build_model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with stretch() as planning:
        whole = plan_recipe(config, Cluster(find_device("H100", GPUS), GPUS, 8))
    with stretch() as cutting:
        piped = load_config(RECIPE, [*settings, f"parallel.pipeline={STAGES}"], DS_CONFIG)
        cut = plan_recipe(piped, Cluster(find_device("H100", GPUS), GPUS, 8)).cut
    assert cut is not None
    del model
    gc.collect()
    give_back()
    deferred = Deferred()
    with stretch() as constructing, deferred:
        model = task.build_model()
    give_back()
    named = sorted(model.named_parameters(), key=lambda entry: -entry[1].numel())[:PIECES]
    pieces = []
    for name, parameter in named:
        with stretch() as one:
            values = deferred.fill(parameter)
            sample = values.reshape(-1)[:: max(1, values.numel() // 1024)]
            assert bool(sample.isfinite().all())
            assert bool(sample.any())
            size = values.nbytes
            del values, sample
        pieces.append({"name": name, "bytes": size, **vars(one)})
    return {
        "parameters": parameters,
        "bytes of the fp32 weights": 4 * parameters,
        "on meta": vars(on_meta),
        "plan": {**vars(planning), "GiB of a rank on 128 GPUs": whole.stages[0].estimate.memory.peak / 2**30},
        "cut": {**vars(cutting), "pieces": list(cut.pieces), "busiest over mean": cut.imbalance},
        "constructed as in a launch": vars(constructing),
        "largest pieces, one at a time": pieces,
    }
