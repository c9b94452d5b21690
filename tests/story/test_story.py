"""What `make train` runs, smaller: pretrain on two ranks with DeepSpeed, evaluate, report, export; then go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "train.steps=6", "train.global_batch=32", "optim.schedule.warmup_steps=2", "log.every=1", "checkpoint.every=3",
    "evaluate.every=3", "data.workers=0",
]  # fmt: skip


def run(*command: str, **environment: str) -> str:
    """What a command printed. A command that fails shows all of it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    ended = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run's folder and what `make train` printed. Chapters below look at it, and the last goes on with it."""
    folder = tmp_path_factory.mktemp("story") / "debug"
    printed = run("bash", "scripts/train.sh", *SMALL, BIN=str(Path(sys.executable).parent), RUN=str(folder))
    return folder, printed


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_it_says_what_it_does_and_where_everything_is(story: tuple[Path, str]) -> None:
    folder, printed = story
    for words in ("building the model", "step 6/6", "evaluating test", "report.html", "Try next", str(folder)):
        assert words in printed, words
    assert "Traceback" not in printed


def test_the_folder_holds_the_whole_run(story: tuple[Path, str]) -> None:
    folder, _ = story
    assert [record["step"] for record in records(folder)] == [1, 2, 3, 4, 5, 6]
    run_record = read(folder / "run.json")
    assert run_record["status"] == "finished"
    assert run_record["starts"][0]["world_size"] == 2
    assert {"torch", "deepspeed", "python"} <= set(run_record["starts"][0]["versions"])
    assert read(folder / "ds_config.json")["zero_optimization"]["stage"] == run_record["facts"]["zero_stage"] == 2
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert any((folder / "tensorboard").iterdir())
    assert "step 6/6" in (folder / "log.txt").read_text()


def test_it_is_evaluated(story: tuple[Path, str]) -> None:
    entries = read(story[0] / "evaluation.json")
    assert [(entry["split"], entry["step"]) for entry in entries] == [("validation", 3), ("validation", 6), ("test", 6)]
    test = entries[-1]
    assert test["counts"]["zero_shot/classes"] == 20
    assert test["counts"]["retrieval/count"] == test["counts"]["zero_shot/count"] > 150
    assert test["chance"]["zero_shot/top1"] == 0.05
    assert set(test["chance"]) == set(test["results"])


def test_the_report_shows_it(story: tuple[Path, str]) -> None:
    page = (story[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 24
    assert page.count("data:image/jpeg;base64,") == 24
    assert "finished" in page
    assert "http" not in page.split("<h2>How it was made")[0]


def test_the_export_holds_the_weights(story: tuple[Path, str]) -> None:
    exported = story[0] / "hf"
    assert read(exported / "config.json")["auto_map"]
    with safe_open(next(exported.glob("*.safetensors")), framework="pt") as weights:
        names = set(weights.keys())
    assert any("logit_scale" in name for name in names)


def test_it_goes_on_where_it_stopped_and_evaluates_the_same(story: tuple[Path, str]) -> None:
    folder, _ = story
    again = run(sys.executable, "trainer/run.py", *SMALL, f"run.dir={folder}")
    assert "is finished" in again
    before = read(folder / "evaluation.json")[-1]
    run(sys.executable, "trainer/run.py", "eval", str(folder))
    after = read(folder / "evaluation.json")
    assert len(after) == 3
    assert after[-1]["results"] == pytest.approx(before["results"], abs=1.5 / before["counts"]["retrieval/count"])
    longer = run(sys.executable, "trainer/run.py", "train.steps=7", *SMALL[1:], f"run.dir={folder}")
    assert "resuming from" in longer
    assert [record["step"] for record in records(folder)] == [1, 2, 3, 4, 5, 6, 7]
    assert len(read(folder / "run.json")["starts"]) == 2
