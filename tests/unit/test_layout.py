"""The folder layout that keeps import names from meeting other packages' (docs/architecture.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {"kernels": "intern_kernels", "model_zoo": "intern_zoo", "trainer": "intern_trainer"}


@pytest.mark.parametrize(("root", "package"), ROOTS.items())
def test_a_source_root_holds_one_package_and_no_module(root: str, package: str) -> None:
    folders = {p.name for p in (ROOT / root).iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert folders == {package}
    files = {p.name for p in (ROOT / root).glob("*.py")}
    assert files == ({"run.py"} if root == "trainer" else set())


def test_transformers_is_not_confused_by_the_kernels_folder() -> None:
    code = "from transformers import ViTModel; from transformers.utils import is_kernels_available as k; print(k())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("False")


def test_no_python_file_is_too_long() -> None:
    sources = [p for top in (*ROOTS, "tests", "benchmarks") for p in (ROOT / top).rglob("*.py")]
    too_long = {str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text().splitlines())) > 400}
    assert not too_long


def test_configuration_needs_no_torch() -> None:
    code = "import sys, intern_trainer.config.load; sys.exit('torch' in sys.modules)"
    env = {"PYTHONPATH": str(ROOT / "trainer"), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
