"""Where measurements go, with what they were made on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def save(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `folder/name.json`: the figures, the machine, versions, commit and date."""
    from intern_trainer.observe.versions import git_state, machine, versions

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    made = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(device),
        "versions": versions(),
        "git": git_state(),
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, **figures, **made}, indent=1) + "\n", encoding="utf-8")
    return path
