"""The table of figures: finished runs are not made again, means and bounds, and a set that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import figures

NAMES = [f"retrieval/{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Every run "trained", with its settings: a folder with results that depend on loss and seed."""
    calls = []

    def train(run_dir: Path, recipe: str, settings: list[str]) -> None:
        calls.append((run_dir.name, settings))
        seed = int(run_dir.name[-1]) if "seed" in run_dir.name else 0
        value = 0.02 if run_dir.name == "control" else 0.2 + 0.01 * seed
        names = [*NAMES, "zero_shot/top1"]
        entry = {
            "split": "test", "step": 1, "chance": dict.fromkeys(names, 0.02), "results": dict.fromkeys(names, value),
            "counts": {"retrieval/count": 1200, "zero_shot/count": 200},
        }  # fmt: skip
        run_dir.mkdir(parents=True)
        (run_dir / "evaluation.json").write_text(json.dumps([entry]))
        (run_dir / "metrics.jsonl").write_text('{"seconds": 3.5}\n')
        (run_dir / "run.json").write_text('{"status": "finished"}')

    monkeypatch.setattr(figures, "train", train)
    monkeypatch.setattr(figures, "REPOSITORY", tmp_path)  # without emoji
    return calls


def test_one_table_of_runs_that_are_made_once(
    trained: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = {}
    monkeypatch.setattr(figures, "save", lambda name, found: saved.setdefault(name, found))
    runs = ["--runs", str(tmp_path / "runs")]
    assert figures.main(runs) == 0
    assert len(trained) == 10
    assert ("siglip-seed-1", ["loss.kind=siglip", "train.seed=1"]) in trained
    printed = capsys.readouterr()
    assert "emoji is not there: make emoji" in printed.err
    assert "| embedded, 1,200 pairs | declip | 21.0% ± 1.0% |" in printed.out
    assert "| embedded, 1,200 pairs | chance | 2.0% |" in printed.out
    assert saved["figures"]["losses"]["clip"]["results"]["zero_shot/top1"]["values"] == pytest.approx([0.2, 0.21, 0.22])
    assert figures.main([*runs, "--losses", "clip"]) == 0
    assert len(trained) == 10
    assert figures.main([*runs, "--data", "emoji"]) == 2
    (tmp_path / "runs" / "embedded" / "clip-seed-0" / "run.json").write_text('{"status": "unfinished"}')
    with pytest.raises(FileExistsError):  # it is gone on with
        figures.main(runs)


def test_bounds_of_the_mean_and_of_the_control(trained: list, tmp_path: Path) -> None:
    runs = ["--runs", str(tmp_path / "runs"), "--losses", "clip"]
    assert figures.main(runs) == 0
    for name, value in (("control", 0.05), ("clip-seed-2", 0.09)):
        path = tmp_path / "runs" / "embedded" / name / "evaluation.json"
        before = path.read_text()
        [entry] = json.loads(before)
        entry["results"]["retrieval/image_to_text_R@5"] = value
        path.write_text(json.dumps([entry]))
        assert figures.main(runs) == 1, name
        path.write_text(before)
    assert figures.main(runs) == 0
