"""What this run was made with: versions, commit, command, machine. No environment variables, so no secrets."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "torchvision", "deepspeed", "triton", "transformers", "open_clip_torch", "timm", "safetensors", "numpy",
    "pillow",
)  # fmt: skip
_SECRET = re.compile(r"(?i)(token|secret|password|passwd|api_?key|access_?key)([^=\s]*)=\S+")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@|(?<=\?)\S+")


def versions() -> dict[str, str]:
    """Versions of Python, ours and the packages that decide what a run computes; packages that are not installed are
    left out.
    """
    import intern_trainer

    found = {"python": platform.python_version(), "intern_trainer": intern_trainer.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware that this rank runs on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "cores": os.cpu_count(), "platform": platform.platform()}


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Commit of the source that runs and whether files differ from it; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def command_line(arguments: list[str] | None = None) -> str:
    """The command as it was typed, with whatever looks like a secret or like credentials in an address blanked."""
    command = shlex.join(arguments if arguments is not None else [Path(sys.argv[0]).name, *sys.argv[1:]])
    return blank_secrets(command)


def blank_secrets(text: str) -> str:
    return _CREDENTIALS.sub("***", _SECRET.sub(r"\1\2=***", text))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
