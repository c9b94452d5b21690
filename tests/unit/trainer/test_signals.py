"""Requests to stop: each signal, the second Ctrl-C, a launcher that is gone, output that nobody reads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from intern_trainer.signals import STOP_SIGNALS, StopSignals, is_launcher

TRAINER = Path(__file__).resolve().parents[3] / "trainer"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_a_reason_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.requested() is None
        os.kill(os.getpid(), number)
        assert stop.requested() == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested() == number.name  # the first reason stays
    assert signal.getsignal(number) == before


def test_the_second_interrupt_ends_at_once_but_an_echo_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    times, codes = [10.0, 10.1, 12.0], []
    with StopSignals(clock=lambda: times.pop(0), end=codes.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same one, sent to the process and to its group
        assert (codes, stop.requested()) == ([], "SIGINT")
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]
    assert "without a save" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_for_other_ranks(number: signal.Signals) -> None:
    """Rank 1 of 2, alone: its wait is inside C++, where a handler of ours would not run before the timeout."""
    code = """
import os
from intern_trainer.ranks import init_ranks
from intern_trainer.signals import StopSignals
with StopSignals() as signals, signals.fatal():
    print("waiting", flush=True)
    init_ranks()
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent.getsockname()[1])}
        ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "PYTHONPATH": str(TRAINER)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **place, **ranks}, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            silent.settimeout(60)
            connection, _ = silent.accept()  # now it waits inside the store's client
            with connection:
                process.send_signal(number)
                assert process.wait(10) == -number
        finally:
            process.kill()
            process.wait()


def test_handlers_are_back_after_the_wait() -> None:
    with StopSignals() as stop:
        with stop.fatal():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested() == "SIGTERM"


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested() is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python /opt/venv/bin/torchrun --nproc_per_node 2 trainer/run.py", True),
        ("/opt/venv/bin/python3.11 -u -m deepspeed.launcher.launch --world_info=abc trainer/run.py", True),
        ("python /opt/venv/bin/deepspeed --num_gpus 2 trainer/run.py", True),
        ("python -m torch.distributed.run --nproc_per_node 2 trainer/run.py", True),
        ("bash -c deepspeed_everything", False),
        ("timeout 3600 torchrun trainer/run.py", False),
        ("/usr/sbin/slurmstepd", False),
        ("python sweep.py torchrun", False),
        ("make train", False),
        ("", False),
    ],
)
def test_what_is_a_launcher(command: str, expected: bool) -> None:
    assert is_launcher(command.split()) == expected


RANK = """
import sys
from intern_trainer.signals import StopSignals
stop = StopSignals()
print(stop.requested(), flush=True)
sys.stdin.readline()
print(stop.requested(), flush=True)
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_a_launcher_that_is_gone(tmp_path: Path, killed: int) -> None:
    """Two launchers in a row, as `deepspeed` has them; the end of either is noticed, though it may stay a zombie."""
    (tmp_path / "rank.py").write_text(RANK)
    # each says its process id, and hands stdin and stdout on
    nested = (
        "import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.call([sys.executable, *sys.argv[1:]])"
    )
    for name in ("deepspeed", "torchrun"):
        (tmp_path / name).write_text(nested)
    command = [sys.executable, tmp_path / "deepspeed", tmp_path / "torchrun", tmp_path / "rank.py"]
    environment = {**os.environ, "PYTHONPATH": str(TRAINER)}
    outer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert outer.stdin is not None
    assert outer.stdout is not None
    launchers = [int(outer.stdout.readline()) for _ in range(2)]
    assert outer.stdout.readline() == "None\n"
    os.kill(launchers[killed], signal.SIGKILL)
    os.waitid(os.P_PID, outer.pid, os.WEXITED | os.WNOWAIT)  # the outer one ends with the inner one, and stays a zombie
    outer.stdin.write("go on\n")
    outer.stdin.flush()
    assert outer.stdout.readline() == f"its launcher (process {launchers[killed]}) is gone\n"
    outer.stdin.close()
    outer.wait()
    outer.stdout.close()


OUTPUT = """
import os, sys
from intern_trainer.signals import outlive_readers
outlive_readers()
print("first", flush=True)
sys.stdin.readline()
for _ in range(3):
    print("nobody reads this", flush=True)
os.write(3, b"alive")
"""


def test_output_outlives_its_reader(tmp_path: Path) -> None:
    alive, answer = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(TRAINER)}
    process = subprocess.Popen(
        ["bash", "-c", f'exec 3>&{answer}; exec "$0" -c "$1"', sys.executable, OUTPUT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pass_fds=[answer],
    )  # fmt: skip
    os.close(answer)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert os.read(alive, 5) == b"alive"
    os.close(alive)
    assert process.wait() == 0
