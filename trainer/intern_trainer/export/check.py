"""Load an exported folder in a process of its own and compare it with the trainer's model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import intern_zoo.hf.reload
import psutil
import torch
from intern_zoo.hf.state_dict import read_folder
from intern_zoo.text import Tokenizer
from intern_zoo.two_tower import TwoTower
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intern_trainer.config.schema import Config
from intern_trainer.data.transforms import eval_transform
from intern_trainer.errors import ExportError
from intern_trainer.heap import give_back
from intern_trainer.text import text_tokenizer

TOLERANCE = 1e-5
"""Largest difference of a unit vector's entry in fp32. Both sides compute the same sums, in another order at most."""

# quotes and an entity among them: what tokenizers clean away
TEXTS = [
    "a red square",
    "a drawing of a house & a tree",
    "a cat\u2019s \u201cfavourite\u201d place &amp; time",
    "the number 7, in green",
    "zebra",
]


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences between the folder and the trainer's model.

    Attributes:
        weights: of the stored tensors; only measured where the outputs could not be.
        features, logits: on the same pictures and token ids, fp32.
        pixels: of the pictures as the folder's processor and the trainer's transform make them (normalised values).
        scores: of the pipeline's probabilities, from the picture files on.
    """

    weights: float | None = None
    features: float | None = None
    logits: float | None = None
    pixels: float | None = None
    scores: float | None = None


def fits_in_memory(weight_bytes: int) -> bool:
    """Whether one copy of the model, and room to compute, is free on this machine."""
    return psutil.virtual_memory().available > 1.2 * weight_bytes + 2**30


def compare_weights(folder: Path, weights: Iterable[tuple[str, Tensor]]) -> Differences:
    """For models larger than this machine's memory: the stored numbers must be the same, nothing is computed.

    Raises:
        ExportError: they are not.
    """
    stored, expected = _digests(read_folder(folder)), _digests(weights)
    wrong = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if wrong:
        raise ExportError(f"{len(wrong)} tensors of the folder are not the checkpoint's, such as {wrong[0]}")
    return Differences(weights=0.0)


def _digests(weights: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and SHA-256 of each tensor's numbers as fp32 (counters, too: they are small)."""
    return {
        name: (tuple(tensor.shape), hashlib.sha256(tensor.float().contiguous().numpy().data).hexdigest())
        for name, tensor in weights
    }


def compare_two_tower(folder: Path, build: Callable[[], TwoTower], config: Config) -> Differences:
    """Outputs of the folder's model, processor and pipeline beside the trainer's.

    Args:
        build: makes the trainer's model, which is gone before the other process loads its own.

    Raises:
        ExportError: it does not load, gives other token ids, or differs by more than TOLERANCE.
    """
    tokenizer, side = text_tokenizer(config.model.text), config.model.image_size
    pictures, transform = _pictures(side), eval_transform(config)
    image = torch.stack([transform(picture) for picture in pictures]).contiguous()
    texts = [_fitting(text, tokenizer) for text in TEXTS]
    text = tokenizer(texts)
    with torch.no_grad():
        ours = build().eval()(image=image, text=text)
        give_back()
        bias = 0 if ours.logit_bias is None else ours.logit_bias
        logits = ours.logit_scale * ours.image_features @ ours.text_features.T + bias
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch, "inputs")
        inputs.mkdir()
        save_file({"image": image, "text": text}, inputs / "inputs.safetensors")
        (inputs / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        for i, picture in enumerate(pictures):
            picture.save(inputs / f"{i}.png")
        theirs = _reload(folder, inputs, Path(scratch))
    _same_ids(texts, theirs["input_ids"], text, tokenizer.eot_token_id)
    found = Differences(
        features=max(
            _largest(theirs["image_features"], ours.image_features),
            _largest(theirs["text_features"], ours.text_features),
        ),
        logits=_largest(theirs["logits"], logits),
        pixels=_largest(theirs["pixel_values"], image),
        scores=_largest(theirs["scores"], logits.softmax(dim=-1)),
    )
    if not (found.features is not None and found.features <= TOLERANCE):
        raise ExportError(
            f"the reloaded model's features differ by {found.features:.2e} from the trainer's",
            f"they may differ by {TOLERANCE:.0e} in fp32",
            "nothing was written; please report this as a bug",
        )
    return found


COMPARE: dict[str, Callable[[Path, Any, Config], Differences]] = {
    "contrastive": compare_two_tower,
    "local": compare_two_tower,
}
"""By `config.task`, as `kinds.KINDS`."""


def _reload(folder: Path, inputs: Path, scratch: Path) -> dict[str, Tensor]:
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSTARTUP")},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "home"),  # the modelling file is copied there: not into the user's cache
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    outputs = scratch / "outputs.safetensors"
    program = [sys.executable, "-I", str(Path(intern_zoo.hf.reload.__file__)), str(folder), str(inputs), str(outputs)]
    done = subprocess.run(program, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ExportError(
            f"transformers could not load the folder: {last[0]}",
            "an export is only kept if it loads and computes the same",
            "nothing was written; transformers must be >= 5.10.1; else please report this as a bug",
        )
    return load_file(outputs)


def _fitting(text: str, tokenizer: Tokenizer) -> str:
    """The text, or so much of it that no token is cut off: transformers' pipeline never cuts."""
    while text and tokenizer([text])[0].tolist().index(tokenizer.eot_token_id) == tokenizer.context_length - 1:
        text = text[: len(text) // 2]
    return text


def _pictures(side: int) -> list[Image.Image]:
    """A wide and a tall picture with smooth parts and edges, both to be shrunk and cut, and one that must grow."""
    pictures = []
    for i, (width, height) in enumerate(((3 * side, 2 * side), (2 * side, 3 * side), (side // 2, side // 2 + 7))):
        y_h1, x_1w = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
        waves = [(6 + 5 * i) * x_1w + 0 * y_h1, 9 * y_h1 + 0 * x_1w, ((7 + i) * (x_1w + y_h1)).floor()]
        rgb_hw3 = torch.stack([(wave.sin() + 1) / 2 for wave in waves], dim=-1)
        pictures.append(Image.fromarray((255 * rgb_hw3).round().to(torch.uint8).numpy()))
    return pictures


def _same_ids(texts: list[str], theirs: Tensor, ours: Tensor, end_id: int) -> None:
    """Ids must be equal up to the end token; what fills the rest may differ."""
    for text, a, b in zip(texts, theirs, ours, strict=True):
        end = b.tolist().index(end_id) + 1
        if a[:end].tolist() != b[:end].tolist():
            raise ExportError(
                f"{text!r} becomes {a[:end].tolist()} in the folder's tokenizer and {b[:end].tolist()} in ours"
            )


def _largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def load_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy tensors into the model one by one: at no time there are two copies of all."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights:
            state[name].copy_(tensor)
