"""A virtual environment that holds a few distributions of this one, and what they require, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def closure(names: list[str]) -> dict[str, metadata.Distribution]:
    """The named distributions and all that they require here, extras aside."""
    found: dict[str, metadata.Distribution] = {}
    left = [_key(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # required by another platform's build only
            continue
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(_key(requirement.name))
    return found


def make_clean_env(folder: Path, names: list[str]) -> Path:
    """Make the environment at `folder` and give its Python. Packages are links to this environment's, not copies."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    for distribution in closure(names).values():
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            link, target = site / top, Path(str(distribution.locate_file(top)))
            if target.exists() and not link.exists() and not top.endswith(".pth"):
                link.symlink_to(target)
    return folder / "bin" / "python"


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
