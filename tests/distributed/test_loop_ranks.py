"""The loop and the evaluation on several ranks: nobody waits for ever, and counts are exact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.spawn import REPOSITORY, free_port, rank_environment, run_ranks


@pytest.fixture(scope="module")
def evaluations() -> dict[int, list]:
    return {ranks: run_ranks("tests.distributed.loop_worker:evaluation", ranks) for ranks in (1, 3)}


def test_three_ranks_count_what_one_rank_counts(evaluations: dict[int, list]) -> None:
    (alone,) = evaluations[1]
    assert alone["results"]["retrieval/count"] == 10
    assert alone["results"]["zero_shot/count"] == 10
    assert len(alone["results"]) == 12
    for rank in evaluations[3]:
        assert rank["results"] == alone["results"]


def test_every_rank_calls_the_model_equally_often(evaluations: dict[int, list]) -> None:
    assert len({rank["calls"] for rank in evaluations[3]}) == 1
    assert evaluations[3][0]["calls"] == 1 + 2 + 2  # a class, two batches, two batches a rank


def test_rows_of_ranks_that_have_none_or_many(evaluations: dict[int, list]) -> None:
    for rank in evaluations[3]:
        assert rank["gathered"] == [0.0, 1.0, 0.0, 1.0, 2.0, 3.0]
    assert [rank["start"] for rank in evaluations[3]] == [0, 0, 2]


def test_an_error_while_reading_reaches_all_ranks_and_the_model_trains_on(evaluations: dict[int, list]) -> None:
    for rank in evaluations[1] + evaluations[3]:
        assert "ends in the middle of a picture" in rank["error"]
        assert rank["training"] is True


def test_sample_captions_belong_to_their_pictures(evaluations: dict[int, list]) -> None:
    (alone,) = evaluations[1]
    expected = {name: (caption, top) for name, caption, top in alone["pictures"]}
    for rank in evaluations[3]:
        assert rank["candidates"] == 10
        assert len(rank["pictures"]) == 6
        assert rank["pictures"] == evaluations[3][0]["pictures"]
        for name, caption, top in rank["pictures"]:
            assert caption == f"caption {name.split('/')[1]}"
            if name in expected:
                assert [c for c, _ in top] == [c for c, _ in expected[name][1]]
                assert [p for _, p in top] == pytest.approx([p for _, p in expected[name][1]], rel=1e-4)


def test_one_ranks_trouble_is_every_ranks_end() -> None:
    ranks = run_ranks("tests.distributed.loop_worker:loops", 2)
    for rank in ranks:
        assert rank["error"]["ended"].startswith("DataError: data error: more bad samples")
        assert rank["error"]["step"] == 1  # told with the step before, whose update is left out
        assert rank["nan"]["ended"].startswith(
            "TrainingError: training error: the loss of rank 1 is nan; its samples: line/2-0-0"
        )
        assert rank["nan"]["step"] == 2
        assert rank["stop"] == {**rank["stop"], "ended": "ok", "step": 2, "stop": "SIGUSR1"}
        assert rank["fine"] == {**rank["fine"], "ended": "ok", "step": 4, "stop": None}
    assert ranks[0]["bug"]["ended"].startswith(
        "TrainingError: training error: rank 1 failed while reading data: KeyError"
    )
    assert ranks[1]["bug"]["ended"].startswith("KeyError")
    assert ranks[0]["fine"]["loss"] == ranks[1]["fine"]["loss"]


def test_an_error_that_all_ranks_have_is_said_once(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "trainer/run.py", f"data.train={tmp_path}/none.tar", f"run.dir={tmp_path}/run"]
    processes = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=rank_environment(rank, 2, port), stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [3, 3]
    assert "".join(said).count("data error") == 1, said
    assert "Traceback" not in "".join(said)
