"""Where a run stands, apart from the numbers in its model: position, history, random number generators."""

from __future__ import annotations

import base64
import hashlib
import math
import platform
import random
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import Any

import numpy as np
import torch

from intern_trainer import __version__


@dataclass
class Progress:
    """The position of a run after `step` optimizer steps.

    Attributes:
        step, samples: optimizer steps done and samples seen since the run's very start; `step` is the data's position.
        seconds: training time so far, in seconds, earlier starts included; for the ETA.
        loss, grad_norm: of the last step that changed the weights. Not finite: `save` refuses.
        data_fingerprint: what the order of samples depends on (`TrainData.fingerprint`).
        evaluations: results so far, `{"step": 100, "retrieval/image_to_text_R@5": 0.4, ...}`; they decide what is best.
        left_out: numbers (from 0) of steps that are passed over since a rollback. bad_steps: how many others were left
            out. loss_statistics: running mean of the loss and the like.
        tokenizer: digest of the text tokenizer, see `intern_trainer.text`.
        versions: of the programs that wrote it. world_size: ranks that wrote it. Both are filled in by `save`.
    """

    step: int
    samples: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    grad_norm: float = 0.0
    data_fingerprint: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    tokenizer: str = "clip"
    left_out: list[int] = field(default_factory=list)
    bad_steps: int = 0
    loss_statistics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    world_size: int = 1

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def scores(self, metric: str) -> dict[int, float]:
        """`metric` by step, where it was evaluated."""
        return {int(result["step"]): result[metric] for result in self.evaluations if metric in result}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def versions() -> dict[str, str]:
    found = {"intern-trainer": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("deepspeed", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def rng_state(device: torch.device) -> dict[str, Any]:
    """This process' random number generators (torch on the CPU and on `device`, numpy, python) as JSON values."""
    legacy: Any = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    state = {
        "torch": _text(torch.get_rng_state().numpy().tobytes()),
        "numpy": [legacy[0], _text(np.asarray(legacy[1]).astype("<u4").tobytes()), *map(_plain, legacy[2:])],
        "python": [version, list(words), gauss],
    }
    if device.type == "cuda":
        state["cuda"] = _text(torch.cuda.get_rng_state(device).numpy().tobytes())
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(_bytes_tensor(state["torch"]))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.frombuffer(base64.b64decode(keys), dtype="<u4"), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_bytes_tensor(state["cuda"]), device)


def derive_rng_state(seed: int, step: int, rank: int) -> None:
    """Seed the generators of a rank that has no saved state of its own, the same way each time."""
    digest = hashlib.sha256(f"resume/{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    random.seed(digest)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _plain(value: Any) -> int | float:
    return float(value) if isinstance(value, float | np.floating) else int(value)
