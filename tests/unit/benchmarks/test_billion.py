"""The billion benchmark's judgement of memory: before it begins, of a process, and of a rank beside its plan."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from intern_trainer.errors import EnvironmentFault

from benchmarks import billion
from benchmarks.billion.watch import Peak, Watched, parse_status, watch

GIB = 1 << 30
PLANS = {"on two": billion.Planned([8 * GIB, 9 * GIB], 12 * GIB), "on one": billion.Planned([16 * GIB], 12 * GIB)}


def test_it_begins_where_every_case_fits() -> None:
    needed = 17 * GIB + 2 * billion.BESIDES + billion.MARGIN
    billion.check_room(PLANS, needed, 25 * GIB)
    with pytest.raises(EnvironmentFault, match=r"on two takes .* of memory"):
        billion.check_room(PLANS, needed - 1, 25 * GIB)


def test_it_wants_disk_for_two_checkpoints() -> None:
    with pytest.raises(EnvironmentFault, match=r"25\.0 GiB of disk, 24\.0 GiB are free"):
        billion.check_room(PLANS, 100 * GIB, 24 * GIB)


def test_a_status_file_is_read_in_bytes() -> None:
    assert parse_status("Name:\trun\nVmHWM:\t  2048 kB\nRssAnon:\t 1 kB\nThreads:\t3\n") == {
        "VmHWM": 2 << 20,
        "RssAnon": 1024,
    }


def test_a_rank_is_compared_without_what_it_holds_besides() -> None:
    watched = Watched(1.0, {"rank 0": Peak(anonymous=9 * GIB, resident=10 * GIB)})
    found = billion.row(
        watched, [{"step": 4, "loss": 0.5, "step_seconds": 2.0}], billion.Planned([8 * GIB], 0), besides=GIB
    )
    assert found["ranks"][0]["measured"] == 8 * GIB
    assert found["ranks"][0]["measured over plan"] == 1.0
    assert found["steps"] == [4]


def test_processes_are_seen_by_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank lives until it was seen at its full size."""
    seen = tmp_path / "seen"
    rank = tmp_path / "run.py"
    wait = f"while not pathlib.Path({str(seen)!r}).exists(): time.sleep(.01)"
    rank.write_text(f"import pathlib, time\nheld = bytearray(64 << 20)\n{wait}")
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import os, subprocess, sys\n"
        f"sys.exit(subprocess.call([sys.executable, {str(rank)!r}], env=os.environ | {{'RANK': '3'}}))"
    )

    def see(peak: Peak, status: dict[str, int]) -> None:
        plain(peak, status)
        if peak.anonymous >= 64 << 20:
            seen.touch()

    plain = Peak.see
    monkeypatch.setattr(Peak, "see", see)
    peaks = watch([sys.executable, launcher], tmp_path).peaks
    assert 64 << 20 <= peaks["rank 3"].anonymous <= 96 << 20
    assert peaks["launcher"].anonymous < 64 << 20


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        watch([sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path)
