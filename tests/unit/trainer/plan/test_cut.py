"""The balanced cut: against all cuts of small chains; its limits for ten billion parameters; cuts made by hand."""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from intern_trainer.config.checks import BatchPlan, batch_plan
from intern_trainer.config.load import load_config
from intern_trainer.config.schema import Config, Parallel
from intern_trainer.errors import ConfigError
from intern_trainer.parallel.schedule import bubble
from intern_trainer.plan import Cluster, Cut, cut_of
from intern_trainer.plan.balance import EQUAL, balance, cut_chain, rank_loads
from intern_trainer.plan.built import build_on_meta, inputs_of
from intern_trainer.plan.cut import Chain, allowed_places, best_cut, check_cut, in_flight, link_seconds, placed
from intern_trainer.plan.hardware import DEVICES
from intern_trainer.plan.links import chain_cost
from intern_trainer.plan.measure import measure
from intern_trainer.tasks import build_task
from intern_zoo.chain import links
from torch import nn

from tests.unit.trainer.checkpoint.fakes import ALONE

RECIPES = Path(__file__).parents[4] / "configs" / "stage1"


def all_cuts(n: int, k: int, allowed: Any) -> list[list[int]]:
    return [[0, *inside, n] for inside in combinations([p for p in allowed if 0 < p < n], k - 1)]


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_is_the_best_of_all(seed: int) -> None:
    draw = random.Random(seed)
    seconds = [draw.choice([0.1, 1.0, 3.0, 7.0]) * draw.random() for _ in range(11)]
    allowed = sorted(draw.sample(range(1, 11), 8))

    def cost(_: int, i: int, j: int) -> float:
        return sum(seconds[i:j])

    found = cut_chain(11, 4, cost, allowed)
    assert found is not None
    best = min(max(cost(0, i, j) for i, j in pairwise(cut)) for cut in all_cuts(11, 4, allowed))
    assert max(cost(0, i, j) for i, j in pairwise(found)) == pytest.approx(best)
    assert set(found[1:-1]) <= set(allowed)


def test_more_pieces_than_places_have_no_cut() -> None:
    assert cut_chain(5, 4, lambda k, i, j: 1.0, [2, 3]) is None


@pytest.mark.parametrize("seed", range(4))
def test_among_equals_the_emptiest_is_taken(seed: int) -> None:
    draw = random.Random(seed)
    seconds = [float(draw.choice([1, 1, 2])) for _ in range(10)]
    state, memory = ([draw.random() for _ in range(10)] for _ in range(2))
    flying = [[3], [2], [1]]
    pieces = balance(seconds, state, memory, flying, range(1, 10))
    assert pieces is not None

    def loads(cut: list[int]) -> tuple[float, float]:
        parts = list(pairwise(cut))
        time = max(sum(seconds[i:j]) for i, j in parts)
        full = max(sum(state[i:j]) + flying[k][0] * sum(memory[i:j]) for k, (i, j) in enumerate(parts))
        return time, full

    best_time = min(loads(cut)[0] for cut in all_cuts(10, 3, range(1, 10)))
    best_full = min(full for time, full in map(loads, all_cuts(10, 3, range(1, 10))) if time <= best_time * (1 + EQUAL))
    assert loads([0, pieces[0], pieces[0] + pieces[1], 10]) == pytest.approx((best_time, best_full))


@pytest.mark.parametrize("seed", range(6))
def test_interleaved_pieces_are_balanced_over_ranks(seed: int) -> None:
    """Not exact: within a tenth of the best of all, and never worse than the even pieces that it begins with."""
    draw = random.Random(seed)
    seconds = [1 + 4 * draw.random() for _ in range(12)]

    def cost(_: int, i: int, j: int) -> float:
        return sum(seconds[i:j])

    pieces = balance(seconds, [0.0] * 12, [0.0] * 12, [[1, 1]] * 3, range(1, 12))
    assert pieces is not None
    found = [sum(pieces[:k]) for k in range(7)]
    even = cut_chain(12, 6, cost, range(1, 12))
    assert even is not None
    best = min(rank_loads(cut, 3, cost)[0] for cut in all_cuts(12, 6, range(1, 12)))
    busiest = rank_loads(found, 3, cost)[0]
    assert busiest <= (1 + EQUAL) * rank_loads(even, 3, cost)[0]
    assert busiest <= 1.1 * best


def test_micro_batches_in_flight() -> None:
    def config(schedule: str, chunks: int = 1) -> Config:
        return Config.model_validate({"parallel": {"pipeline": 4, "schedule": schedule, "chunks": chunks}})

    assert [in_flight(config("1f1b"), stage, 32) for stage in range(4)] == [[4], [3], [2], [1]]
    assert in_flight(config("1f1b"), 0, 2) == [2]
    assert in_flight(config("gpipe"), 3, 32) == [32]
    # Megatron's 2 (p - 1 - r) + (v - 1) p ahead, and the one at work
    assert [sum(in_flight(config("interleaved", 2), stage, 32)) for stage in range(4)] == [11, 9, 7, 5]
    assert bubble(4, 2, 32) == pytest.approx(3 / 67)


def test_what_shares_a_parameter_stays_together() -> None:
    chain = [nn.Linear(2, 2) for _ in range(5)]
    chain[3].weight = chain[1].weight
    assert allowed_places(chain) == [1, 4]


def cut(recipe: str, ranks: int, *overrides: str) -> Cut:
    config = load_config(RECIPES / f"{recipe}.yaml", list(overrides))
    return cut_of(config, build_task(config, ALONE), Cluster(DEVICES["H100"], ranks, 8))


@cache
def debug_cut(*overrides: str) -> Cut:
    return cut("debug", 4, *overrides)


def test_the_debug_recipe_is_cut() -> None:
    found = debug_cut("parallel.pipeline=2")
    assert sum(found.pieces) == len(found.names)
    assert found.imbalance < 1.15
    others = [debug_cut("parallel.pipeline=2", f"parallel.text={text}") for text in ("first", "last")]
    assert max(found.seconds) == min(max(other.seconds) for other in others)
    table = found.table()
    assert f"parallel.text={found.text} parallel.cut=[{found.pieces[0]},{found.pieces[1]}]" in table
    assert "image.trunk.stem" in table or "text.token_embedding" in table


def test_a_cut_by_hand_is_taken() -> None:
    found = debug_cut("parallel.pipeline=2", "parallel.cut=[3,15]", "parallel.text=last")
    assert (found.pieces, found.text) == ([3, 15], "last")
    assert found.imbalance > debug_cut("parallel.pipeline=2").imbalance


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([3, 16], "is of 19 links, and the model's chain has 18"),
        ([3, 3, 12], "has 3 pieces for 2 stage(s) of 1 chunk(s)"),
    ],
)
def test_a_wrong_cut_is_told(pieces: list[int], told: str) -> None:
    config = load_config()
    with torch.device("meta"):
        chain = links(build_task(config, ALONE).build_model())  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as error:
        check_cut(pieces, chain, 2, 1)
    assert told in error.value.found


def test_a_cut_through_shared_parameters_is_told() -> None:
    config = load_config()
    with torch.device("meta"):
        model: Any = build_task(config, ALONE).build_model()
        blocks = model.text.transformer.resblocks
        blocks[2].mlp = blocks[0].mlp
        chain = links(model)
    first = next(i for i, link in enumerate(chain) if link.unit.endswith("resblocks.0"))
    with pytest.raises(ConfigError, match="shares a parameter"):
        check_cut([first + 1, len(chain) - first - 1], chain, 2, 1)
    check_cut([first, len(chain) - first], chain, 2, 1)


def test_too_many_pieces_are_told() -> None:
    with pytest.raises(ConfigError, match="18 pieces at most"):
        cut("debug", 32, "parallel.pipeline=32", "train.micro_batch=4")


@cache
def ten_billion() -> tuple[Chain, BatchPlan]:
    """As its recipe has it: 256 pixels, 8 at once, statistics over ranks."""
    config = load_config(RECIPES / "10b.yaml")
    return Chain(config, build_task(config, ALONE), 256, 8, True), batch_plan(config, 16)


def image_alone(stages: int, chunks: int) -> float:
    """Busiest over mean of the image tower's stages."""
    chain, batch = ten_billion()
    cluster = Cluster(DEVICES["H100"], 128, 8)
    costs = [cost for cost in chain.costs if cost.tower == "image"]
    seconds = [link_seconds(cost, frozenset(), batch, cluster, "bf16") for cost in costs]
    nothing = [0.0] * len(costs)
    pieces = balance(seconds, nothing, nothing, [[1] * chunks] * stages, range(1, len(costs)))
    assert pieces is not None
    loads = [0.0] * stages
    for piece in placed(pieces, stages):
        loads[piece.stage] += sum(seconds[piece.begin : piece.end])
    return max(loads) * stages / sum(loads)


def test_ten_billion_parameters_are_balanced_with_their_text_tower() -> None:
    chain, batch = ten_billion()
    cluster = Cluster(DEVICES["H100"], 128, 8)
    for stages in (2, 4, 8):
        piped = Parallel.model_validate({"pipeline": stages})
        chain.config = chain.config.model_copy(update={"parallel": piped})
        found = best_cut(chain, batch, cluster, "none")
        assert sum(found.pieces) == len(found.names) == 128
        assert found.imbalance <= 1.10


@pytest.mark.parametrize(("stages", "chunks"), [(2, 1), (4, 2), (8, 3)])
def test_the_image_tower_of_ten_billion_parameters_is_balanced(stages: int, chunks: int) -> None:
    assert image_alone(stages, chunks) <= 1.05


def test_one_piece_a_rank_is_as_good_as_whole_blocks_allow() -> None:
    """A block of the second stage takes a third of an eighth of the network."""
    assert image_alone(4, 1) == pytest.approx(1.0545, abs=2e-3)
    assert image_alone(8, 1) == pytest.approx(1.1032, abs=2e-3)


def test_links_cost_what_the_model_costs() -> None:
    config = load_config()
    task = build_task(config, ALONE)
    chain = Chain(config, task, 64, 4, False)
    whole = measure(build_on_meta(task, False), inputs_of(config, task, 64, 4), [], torch.float32)
    together = chain_cost(chain.costs, 4)
    assert together.saved == pytest.approx(whole.saved, rel=0.01)
    forward = [sum(op.flops for unit in cost.units for op in unit.forward) for cost in (together, whole)]
    assert forward[0] == forward[1]
    flops = [sum(op.flops for op in cost.backward) for cost in (together, whole)]
    assert flops[0] == pytest.approx(flops[1], rel=0.01)
    assert together.working == pytest.approx(whole.working, rel=0.1)
    # the text first: the same links, and what it has made travels with the pictures' maps
    assert sum(cost.sent for cost in chain.ordered("first")) > 0
    assert {cost.unit.name for cost in chain.ordered("first")} == {cost.unit.name for cost in chain.costs}


def test_a_packed_text_tower_is_one_link_with_full_captions() -> None:
    packed = debug_cut("parallel.pipeline=2", "model.text.pack=true")
    assert len(packed.names) == 18 - 4
    assert sum(packed.seconds) == pytest.approx(sum(debug_cut("parallel.pipeline=2").seconds), rel=0.05)
