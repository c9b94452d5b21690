"""Configurations are tried in use, the fastest is kept in a file, and without being asked nothing is tried. The GPU's
clock is played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from intern_kernels import tuning
from intern_kernels.launch import Config, Launch, instead, launch

SPACE = [Config({"BLOCK": block}, num_warps=4) for block in (32, 64, 128)]
DEFAULT = Config({"BLOCK": 16})
MILLISECONDS = {32: 3.0, 64: 1.0, 128: 2.0}


class Clock:
    """Stands for torch.cuda.Event; a launch moves the time on."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = Clock.now

    def elapsed_time(self, end: Clock) -> float:
        return end.at - self.at


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    yield
    tuning.configure(autotune=False)


def kernel() -> None: ...


def use(key: int = 1) -> int:
    """One call of an op: the block that it ran with."""
    config = tuning.pick("kernel", (key, "bf16"), DEFAULT, lambda: SPACE)

    def run(call: Launch) -> None:
        Clock.now += MILLISECONDS.get(call.constants["BLOCK"], 0)

    with instead(run):
        launch(kernel, (1,), (), config)
    return config["BLOCK"]


def test_nothing_is_tried_unasked(tmp_path: Path) -> None:
    tuning.configure(autotune=False, folder=tmp_path)
    assert {use() for _ in range(20)} == {16}
    assert not list(tmp_path.iterdir())


def test_nothing_is_tried_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tuning.configure(autotune=True, folder=tmp_path)
    assert {use() for _ in range(20)} == {16}


def test_the_fastest_is_taken_and_kept(tmp_path: Path) -> None:
    tuning.configure(autotune=True, folder=tmp_path)
    turns = [use() for _ in range(4 * len(SPACE))]
    assert turns == [32, 64, 128] * 4
    assert {use() for _ in range(3)} == {64}
    tuning.configure(autotune=True, folder=tmp_path)
    assert use() == 64, "a later run begins with it"
    assert use(key=2) == 32, "another shape is another question"


def test_what_another_rank_found_is_not_lost(tmp_path: Path) -> None:
    for key in (1, 2):
        tuning.configure(autotune=True, folder=tmp_path)
        tuning._state.known.clear()  # both began before either had written
        for _ in range(4 * len(SPACE) + 1):
            use(key)
    tuning.configure(autotune=True, folder=tmp_path)
    assert len(tuning._state.known) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"kernel:1:bf16": {"block": 3}}'])
def test_a_file_that_cannot_be_read_is_made_anew(tmp_path: Path, content: str) -> None:
    tuning.configure(autotune=True, folder=tmp_path)
    file: Any = tuning._state.file
    file.write_text(content)
    tuning.configure(autotune=True, folder=tmp_path)
    for _ in range(4 * len(SPACE) + 1):
        use()
    tuning.configure(autotune=True, folder=tmp_path)
    assert use() == 64


def test_a_configuration_that_is_no_more_is_not_taken(tmp_path: Path) -> None:
    tuning.configure(autotune=True, folder=tmp_path)
    file: Any = tuning._state.file
    file.write_text('{"kernel:1:bf16": {"constants": {"BLOCK": 4096}, "num_warps": 4, "num_stages": 2}}')
    tuning.configure(autotune=True, folder=tmp_path)
    assert use() == 32


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tuning.configure(autotune=True, folder=tmp_path / "file")
    for _ in range(4 * len(SPACE)):
        use()
    assert use() == 64


def test_where_nothing_was_timed_the_rule_holds(tmp_path: Path) -> None:
    tuning.configure(autotune=True, folder=tmp_path)
    for _ in range(4 * len(SPACE)):
        tuning.pick("kernel", (1, "bf16"), DEFAULT, lambda: SPACE)
    assert use() == 16


def test_a_graph_is_captured_with_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.configure(autotune=True, folder=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert use() == 16


def test_choosing() -> None:
    with tuning.choosing(lambda kernel, default, space: space[-1]):
        assert use() == 128
    assert use() == 16
