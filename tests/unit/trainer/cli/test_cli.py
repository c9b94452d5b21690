"""The command line: what it accepts, what it says, how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from intern_trainer import cli
from intern_trainer.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[4]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A bare clone: nothing of ours is installed or on the path."""
    command = [sys.executable, "-S", "-c", ""] if not arguments else [sys.executable, *arguments]
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=False)


TOOLS = [["data", tool] for tool in ("index", "stats", "check", "preview", "shard")]


@pytest.mark.parametrize("verb", [[], ["train"], ["eval"], ["probe"], ["export"], ["report"], ["data"], *TOOLS])
def test_every_verb_explains_itself(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb, "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_a_mistake_in_a_bare_clone_is_a_message_and_a_code() -> None:
    ended = run("trainer/run.py", "--local_rank=0", "--deepspeed", "optim.lrr=1", "train.steps=many")
    assert ended.returncode == 2
    assert "unknown key optim.lrr" in ended.stderr
    assert "did you mean optim.lr?" in ended.stderr
    assert "train.steps" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_other_ranks_leave_the_message_to_rank_0() -> None:
    ended = run("trainer/run.py", "optim.lrr=1", RANK="1", WORLD_SIZE="2")
    assert ended.returncode == 2
    assert ended.stderr == ""


def test_a_mistake_is_told_without_loading_torch() -> None:
    program = """
import sys
sys.path.insert(0, "trainer")
from intern_trainer import cli
cli.main(["train", "a=b"])
print("torch" in sys.modules)
"""
    assert run("-c", program).stdout.strip() == "False"


def test_options_and_settings_in_any_order() -> None:
    chosen = cli._parse(["train", "a.b=1", "--config", "x.yaml", "c.d=2", "--new-order", "e=3"])
    assert chosen.settings == ["a.b=1", "c.d=2", "e=3"]
    assert (chosen.config, chosen.new_order) == (Path("x.yaml"), True)


@pytest.mark.parametrize(
    ("given", "named"),
    [(["train", "--confg", "x"], "--confg"), (["report", "runs/debug", "a=1"], "a=1"), (["explain"], "'explain'")],
)
def test_unknown_arguments_are_refused(given: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli._parse(given)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_run_py_trains_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    verbs: list[str] = []
    monkeypatch.setattr(cli, "_run", lambda chosen: verbs.append(chosen.verb) or 0)
    for given in ([], ["optim.lr=1"], ["--config", "x.yaml"], ["--local_rank=3"], ["eval", "runs/debug"]):
        assert cli.main(given, default_verb="train") == 0
    assert verbs == ["train", "train", "train", "train", "eval"]


def test_the_exit_code_is_the_errors_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(chosen: object) -> int:
        raise DataError("shard 7 is empty", "every shard holds samples", "leave it out")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["report", "runs/debug"]) == 3
    assert "data error: shard 7 is empty" in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("eval", "report"):
        assert cli.main([verb, str(tmp_path)]) == 2
        assert "holds no config.yaml" in capsys.readouterr().err
