"""The report of a run that exists only as the files of its folder."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from intern_trainer.config.load import write_config
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError
from intern_trainer.evaluate.results import results_entry
from intern_trainer.report import write_report
from intern_trainer.run_folder import RunFolder

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def make_run(path: Path, steps: int = 300) -> RunFolder:
    path.mkdir(exist_ok=True)
    folder = RunFolder(path)
    write_config(Config.model_validate({"train": {"steps": steps}}), folder.config)
    with folder.metrics.open("w") as file:
        for step in range(10, steps + 1, 10):
            record = {
                "step": step, "samples": step * 128, "loss": 4.8 * math.exp(-step / 200) + 0.2 * math.sin(step),
                "lr": 1e-3, "grad_norm": 2.0, "images_per_second": 250 + 20 * math.sin(step), "data_wait": 0.02,
                "memory_bytes": 9e8, "seconds": step * 0.4,
                "eta_seconds": 10.0, "step_seconds": 0.4, "time": 1.8e9,
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    results = {
        "zero_shot/top1": 0.25, "zero_shot/top5": 0.6, "zero_shot/count": 300.0, "zero_shot/classes": 20.0,
        "retrieval/image_to_text_R@5": 0.12, "retrieval/text_to_image_R@5": 0.11, "retrieval/count": 300.0,
    }  # fmt: skip
    for step in range(100, steps + 1, 100):
        scaled = {k: v * step / steps if "/top" in k or "R@" in k else v for k, v in results.items()}
        folder.add_evaluation(results_entry("validation", step, "raw", scaled))
    folder.add_evaluation(results_entry("test", steps, "raw", results))
    top = [["a red apple", 0.7], ["<script>alert(1)</script>", 0.2], ["a dog", 0.004]]
    picture = {"id": "embedded/test-00000/00001", "image": PIXEL, "caption": "a red apple", "top": top}
    folder.write(folder.samples, {"candidates": 300, "pictures": [picture] * 8})
    start = {
        "time": "2026-11-23T12:00:00+0000", "command": "run.py --ds_config zero2.json", "world_size": 2,
        "git": {"commit": "0123456789abcdef", "dirty": True}, "versions": {"torch": "2.14.1"},
        "machine": {"device": "a CPU", "cores": 2, "platform": "Linux"},
    }  # fmt: skip
    facts = {"parameters": 7416349, "zero_stage": 2, "groups": []}
    folder.update_run(status="finished", steps=steps, starts=[start], facts=facts, phases={"building the model": 1.25})
    return folder


class Links(HTMLParser):
    """Everything on a page that a browser would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "poster") and not (value or "").startswith("data:"):
                self.found.append(f"{tag} {name}={value}")


def test_the_page_loads_nothing_and_shows_the_run(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "debug")).read_text()
    links = Links()
    links.feed(page)
    assert links.found == []
    assert "script" not in links.tags
    assert "@import" not in page
    assert not re.search(r"url\(", page)
    for text in (
        "25.00%",
        "5.00%",
        "zero shot"[:4],
        "a red apple",
        "&lt;script&gt;",
        "0123456789ab",
        "7,416,349",
        "2.14.1",
    ):
        assert text in page, text
    assert page.count("<svg") >= 6
    assert links.tags.count("figure") == 8


def test_times_chance_is_the_ratio(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "debug")).read_text()
    rows = re.findall(r"<tr><td>retrieval</td><td>image to text R@5</td>(.*?)</tr>", page, re.DOTALL)
    assert "12.00%" in rows[0]
    assert "1.67%" in rows[0]
    assert ">7.2<" in rows[0]


def test_a_run_that_is_under_way_has_a_report_too(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "debug")
    for path in (folder.evaluation, folder.samples, folder.run):
        path.unlink()
    assert "Not evaluated yet" in write_report(folder).read_text()


def test_no_records_no_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "debug")
    folder.metrics.unlink()
    with pytest.raises(ConfigError, match="holds no record yet"):
        write_report(folder)


def test_an_evaluation_of_the_same_step_takes_the_older_ones_place(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "debug")
    before = folder.read(folder.evaluation, [])
    folder.add_evaluation({**before[-1], "results": {"zero_shot/top1": 0.5}})
    after = folder.read(folder.evaluation, [])
    assert len(after) == len(before)
    assert after[-1]["results"] == {"zero_shot/top1": 0.5}
    folder.add_evaluation({**before[-1], "weights": "ema"})
    assert len(folder.read(folder.evaluation, [])) == len(before) + 1


def test_evaluations_after_the_step_of_a_resume_are_forgotten(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "debug")
    kept = folder.forget_evaluations_after(200)
    assert [entry["step"] for entry in kept] == [100, 200]
    assert folder.read(folder.evaluation, []) == kept


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        RunFolder.existing(tmp_path)
