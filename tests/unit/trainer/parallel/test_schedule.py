"""Orders of a pipeline's passes: complete, no dead-lock, one order on both ends of a link, the known bubble."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from intern_trainer.parallel.schedule import Action, actions, bubble, forward_only, span

CASES = [
    (kind, stages, chunks, micro)
    for kind in ("gpipe", "1f1b", "interleaved")
    for stages in (2, 3, 4, 8)
    for chunks in ((1,) if kind == "1f1b" else (2, 3) if kind == "interleaved" else (1, 2))
    for micro in ((stages, 2 * stages, 5 * stages) if chunks > 1 else (1, 2, stages, 3 * stages + 1))
]


@pytest.mark.parametrize(("kind", "stages", "chunks", "micro"), CASES)
def test_every_pass_once_without_dead_lock(kind: str, stages: int, chunks: int, micro: int) -> None:
    passes = [a for stage in range(stages) for a in actions(kind, stages, chunks, stage, micro)]
    every = {Action(f, p, m) for f in (True, False) for p in range(stages * chunks) for m in range(micro)}
    assert set(passes) == every
    assert len(passes) == len(every)
    assert span(kind, stages, chunks, micro, lambda _: 1.0) >= 2 * micro * chunks


@pytest.mark.parametrize(("kind", "stages", "chunks", "micro"), CASES)
def test_both_ends_of_a_link_have_one_order(kind: str, stages: int, chunks: int, micro: int) -> None:
    last = stages * chunks - 1
    by_rank = [actions(kind, stages, chunks, stage, micro) for stage in range(stages)]
    for stage in range(stages):
        neighbour = (stage + 1) % stages
        sent = [a for a in by_rank[stage] if a.forward and a.piece < last]
        got = [a for a in by_rank[neighbour] if a.forward and a.piece]
        assert [(a.piece + 1, a.micro) for a in sent] == [
            (a.piece, a.micro) for a in got if a.piece % stages == neighbour
        ]
        back = [a for a in by_rank[neighbour] if not a.forward and a.piece]
        home = [a for a in by_rank[stage] if not a.forward and a.piece < last]
        assert [(a.piece - 1, a.micro) for a in back] == [(a.piece, a.micro) for a in home]


@pytest.mark.parametrize("backward", [1.0, 2.0])
@pytest.mark.parametrize(
    ("kind", "stages", "chunks", "micro"),
    [("gpipe", 4, 1, 8), ("1f1b", 4, 1, 8), ("1f1b", 8, 1, 24), ("interleaved", 4, 2, 8), ("interleaved", 4, 4, 16)],
)
def test_the_bubble_is_the_known_one(kind: str, stages: int, chunks: int, micro: int, backward: float) -> None:
    whole = span(kind, stages, chunks, micro, lambda action: (1.0 if action.forward else backward) / chunks)
    busy = micro * (1.0 + backward)
    assert 1 - busy / whole == pytest.approx(bubble(stages, chunks, micro))


def test_1f1b_holds_no_more_micro_batches_than_there_are_stages_left() -> None:
    for stage in range(4):
        assert max(_held(actions("1f1b", 4, 1, stage, 16))) == 4 - stage
        assert max(_held(actions("gpipe", 4, 1, stage, 16))) == 16


def test_forward_only_is_the_forward_passes_in_their_order() -> None:
    for stage in range(4):
        order = [a for a in actions("interleaved", 4, 2, stage, 8) if a.forward]
        assert forward_only(4, 2, stage, 8) == order
        assert len(set(forward_only(4, 2, stage, 3))) == 6
        assert {action.micro for action in forward_only(4, 2, stage, 3)} == {0, 1, 2}


def _held(todo: list[Action]) -> Iterator[int]:
    held = 0
    for action in todo:
        held += 1 if action.forward else -1
        yield held
