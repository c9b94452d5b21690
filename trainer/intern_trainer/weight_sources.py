"""Places that weights come from, under the names of our two-tower model.

A checkpoint or run of ours, a folder that we exported, and safetensors files of open_clip (`visual.*`, and the text
tower at the top or under `text.`) and timm (an image model). Files are mapped into memory and read tensor by tensor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import timm
import torch
from intern_zoo import create_model
from intern_zoo.two_tower import sized_options
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intern_trainer.checkpoint import CheckpointReader, newest_good
from intern_trainer.config.schema import Config
from intern_trainer.errors import CheckpointError
from intern_trainer.slices import BUFFER, EMA, FROZEN, PARAM

log = logging.getLogger(__name__)

TRUNK, PROJECTION, TEXT = "image.trunk.", "image.projection.weight", "text."
SCORES = ("logit_scale", "logit_bias")
TEXT_TOP = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
"""The text tower in open_clip's `CLIP`, where it has no prefix."""
CONSTANT = "attn_mask"


class Weights(Protocol):
    """Tensors by the names of our model.

    Attributes:
        shapes: of all tensors that are there.
        whole: whether it must hold all of the model; otherwise a part that it lacks stays fresh.
        tokenizer: `tokenizer_digest` of what its text tower knows; None: it does not say.
    """

    shapes: dict[str, tuple[int, ...]]
    whole: bool
    tokenizer: str | None

    def read(self, name: str, start: int, length: int) -> Tensor:
        """Elements of the flattened tensor, on the CPU, in the type they were saved in."""
        ...


class CheckpointWeights:
    """One checkpoint of ours."""

    whole = True
    tokenizer: str | None

    def __init__(self, path: Path, which: Literal["ema", "raw"]) -> None:
        self._reader = CheckpointReader(path)
        self.tokenizer = self._reader.progress.tokenizer
        averaged = set(self._reader.names(EMA)) if which == "ema" else set()
        self._kinds = {
            name: EMA if kind == PARAM and name in averaged else kind
            for kind in (PARAM, FROZEN, BUFFER)
            for name in self._reader.names(kind)
        }
        self.shapes = {name: self._reader.shape(kind, name) for name, kind in self._kinds.items()}

    def read(self, name: str, start: int, length: int) -> Tensor:
        return self._reader.read(self._kinds[name], name, start, length)


@dataclass
class FileWeights:
    """Tensors that are made when asked for; the last is kept: its pieces are asked for one after another."""

    whole: bool
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    makers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    tokenizer: str | None = None
    _last: tuple[str, Tensor] | None = None

    def read(self, name: str, start: int, length: int) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = (name, self.makers[name]().reshape(-1))
        return self._last[1][start : start + length]

    def add(self, name: str, shape: Iterable[int], make: Callable[[], Tensor]) -> None:
        self.shapes[name], self.makers[name] = tuple(shape), make


def open_weights(config: Config) -> Weights:
    """What `init.from` names.

    Raises:
        CheckpointError: it is not there, damaged, or of no kind that is known.
    """
    path = Path(config.init.from_ or "")
    if path.is_file():
        return file_weights(path, config)
    if (path / "manifest.json").is_file():
        return CheckpointWeights(path, config.init.weights)
    if (path / "checkpoints").is_dir():
        newest = newest_good(path)
        if newest is not None:
            return CheckpointWeights(newest, config.init.weights)
    if (path / "config.json").is_file() and any(path.glob("model*.safetensors")):
        return folder_weights(path)
    found = "is a folder of another kind" if path.is_dir() else "does not exist"
    raise CheckpointError(
        f"init.from={path} {found}",
        "it is a RUN folder with a checkpoint, one checkpoint, a folder that `intern-trainer export` wrote, or a "
        "weights file (.safetensors) of open_clip or timm",
        "correct init.from",
    )


def folder_weights(folder: Path) -> FileWeights:
    """A folder that `intern-trainer export` wrote: our names behind one prefix."""
    from intern_zoo.hf.export import PREFIX  # imports transformers, which takes seconds

    kind = json.loads((folder / "config.json").read_text()).get("model_type", "unknown")
    weights = FileWeights(whole=True)
    for file in sorted(folder.glob("model*.safetensors")):
        for key, (shape, make) in _tensors(file).items():
            if not key.startswith(PREFIX):
                raise CheckpointError(
                    f"{file} holds {key}: a {kind} model of another program",
                    f"names of our exports begin with {PREFIX!r}",
                    "give a folder that `intern-trainer export` wrote",
                )
            weights.add(key.removeprefix(PREFIX), shape, make)
    return weights


def file_weights(file: Path, config: Config) -> FileWeights:
    """A weights file of open_clip (both towers) or of timm (the image model of `model.image`)."""
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"init.from={file} is not a .safetensors file",
            "other weights files are pickles, which can run any program when they are read",
            'convert one that you trust: safetensors.torch.save_file(torch.load("FILE", weights_only=True), NEW)',
        )
    tensors = {key.removeprefix("module."): entry for key, entry in _tensors(file).items()}
    weights = FileWeights(whole=False)
    visual = any(key.startswith("visual.") for key in tensors)
    image: dict[str, Entry] = {}
    for key, entry in tensors.items():
        if key.endswith(CONSTANT):
            continue
        if key in SCORES:
            weights.add(key, (1,), entry[1])
        elif visual and key.startswith("text."):
            weights.add(key, *entry)
        elif visual and key.startswith(TEXT_TOP):
            weights.add(TEXT + key, *entry)
        else:
            image[key] = entry
    for key, (shape, make) in _image_side(image, config).items():
        weights.add(key, shape, make)
    return weights


Entry = tuple[tuple[int, ...], Callable[[], Tensor]]


def _image_side(tensors: dict[str, Entry], config: Config) -> dict[str, Entry]:
    """Names of an image model, as timm or open_clip have them, to ours; a classifier is left out."""
    if "visual.class_embedding" in tensors:
        return _from_open_clip_vit(tensors, config)
    classifier = getattr(timm.get_pretrained_cfg(config.model.image), "classifier", None) or ()
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    renamed = {}
    for key, entry in tensors.items():
        if key == "visual.head.proj.weight":
            renamed[PROJECTION] = entry
        elif heads and key.startswith(heads):
            log.info("left out %s: the classifier of %s", key, config.model.image)
        else:
            renamed[TRUNK + key.removeprefix("visual.trunk.")] = entry
    return renamed


def _from_open_clip_vit(tensors: dict[str, Entry], config: Config) -> dict[str, Entry]:
    """open_clip's own vision transformer has other names than timm's of the same shape; timm knows both."""
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    model = config.model
    with torch.device("meta"):
        trunk = create_model(
            model.image, num_classes=0, **sized_options(model.image, model.image_size, model.image_options)
        )
    if not isinstance(trunk, VisionTransformer):
        raise CheckpointError(
            f"init.from={config.init.from_} holds a vision transformer, model.image is {model.image}",
            "weights fit the network that they were trained in",
            "set model.image to timm's name of it, such as vit_base_patch32_clip_224",
        )
    converted = checkpoint_filter_fn({key: make() for key, (_, make) in tensors.items()}, trunk)
    named = {
        PROJECTION if key == "head.weight" else TRUNK + key: value
        for key, value in converted.items()
        if key != "head.bias"
    }
    return {name: (tuple(value.shape), partial(torch.Tensor.detach, value)) for name, value in named.items()}


def _tensors(file: Path) -> dict[str, Entry]:
    try:
        handle = safe_open(file, framework="pt")
        keys = list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({error})", fix="download or convert it again"
        ) from error
    return {key: (tuple(handle.get_slice(key).get_shape()), partial(handle.get_tensor, key)) for key in keys}
