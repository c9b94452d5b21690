"""How often ZeRO-3 gathers a stage's weights where passes of several micro-batches alternate."""

from __future__ import annotations

from itertools import pairwise

from intern_trainer.config.schema import Config
from intern_trainer.parallel.schedule import actions


def backward_gathers(config: Config, stage: int, micro_batches: int) -> float | None:
    """In the backward passes of a step, in times the stage's weights; None where each of them follows its own forward
    pass, as without a pipeline.

    DeepSpeed 0.19.8 then forecasts no use. The first of consecutive backward passes gathers and lets go; the next ones
    keep what they gather until a forward pass, so from then on nothing is gathered, and the stage is whole on each
    rank. Weights that ZeRO-3 else leaves whole (`stage3_param_persistence_threshold`) are gathered with the others.
    Counted on gloo ranks with 1, 2 and 4 micro-batches of 1f1b, gpipe and interleaved; of an embedding, whose input has
    no gradient, fewer were seen.
    """
    parallel = config.parallel
    if parallel.pipeline == 1:
        return None
    todo = actions(parallel.schedule, parallel.pipeline, parallel.chunks, stage, micro_batches)
    if all(b == a._replace(forward=False) for a, b in pairwise(todo) if a.forward):
        return None
    count, kept, after_another = 0, set[int](), False
    for action in todo:
        if action.forward:
            kept.clear()
        else:
            count += action.piece not in kept
            if after_another:
                kept.add(action.piece)
        after_another = not action.forward
    return count / parallel.chunks
