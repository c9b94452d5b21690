"""Write a folder that transformers loads, for any kind of model.

An `Exportable` says what a kind of model consists of; `write_folder` is the same for all kinds. A new kind brings a
module with its transformers classes and a function that makes its `Exportable`, as `two_tower_exportable` does here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from intern_zoo.hf.flatten import flatten
from intern_zoo.hf.tokenizer import save_tokenizer
from intern_zoo.hf.weights import PREFIX, write_weights
from intern_zoo.metanet import MetaNet
from intern_zoo.text import Tokenizer
from intern_zoo.two_tower import AUXILIARY, TwoTower, sized_options

REPLACE = {
    "intern_zoo.text": "intern_zoo.hf.text",
    "intern_kernels.cross_covariance_attention": "intern_kernels.cross_covariance_attention.reference",
}
"""Whose place is taken in an exported file: open_clip's text tower by ours, and ops by their plain references."""


@dataclass(frozen=True)
class Pictures:
    """How pictures become tensors: the short side to `size` pixels (bicubic), the middle square, normalised."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Exportable:
    """What one kind of model needs to become a folder.

    Attributes:
        module: the module with its transformers classes; `flatten` makes the modelling file of it.
        auto_classes: which of its classes transformers' Auto classes stand for.
        config: what its configuration class takes.
        expected: of the model's state dict what the folder holds (meta is enough).
        pictures: how its input is made.
        tokenizer: None for a model without text.
        pipeline: the transformers pipeline that it serves.
        replace, requires: see `flatten`; packages besides torch and transformers that its modelling file imports.
    """

    module: str
    auto_classes: dict[str, str]
    config: dict[str, Any]
    expected: Mapping[str, Tensor]
    pictures: Pictures
    tokenizer: Tokenizer | None
    pipeline: str
    replace: dict[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"modeling_intern_{self.module.rpartition('.')[2]}"


def two_tower_exportable(
    model: TwoTower,
    image: str,
    image_options: dict[str, Any],
    text: dict[str, int],
    tokenizer: Tokenizer,
    pictures: Pictures,
) -> Exportable:
    """A two-tower model for `zero-shot-image-classification`; the arguments are those that it was built with, `text`
    its `context_length`, `width`, `layers`, `heads`."""
    trunk = model.image.trunk
    replace, requires = dict(REPLACE), tuple[str, ...]()
    if isinstance(trunk, MetaNet):
        image_config = asdict(trunk.config)
    else:  # timm's own, which the folder asks its users to install
        image_config = {"model_name": image, "num_classes": 0, **sized_options(image, pictures.size, image_options)}
        replace["intern_zoo.hf.trunks.metanet"] = "intern_zoo.hf.trunks.timm"
        requires = ("timm",)
    model_class = "InternTwoTowerModel"
    return Exportable(
        module="intern_zoo.hf.two_tower",
        auto_classes={
            "AutoConfig": "InternTwoTowerConfig",
            "AutoModel": model_class,
            "AutoModelForZeroShotImageClassification": model_class,
        },
        config={
            "model_type": "intern_two_tower",
            "image": image_config,
            "text": {**text, "vocab_size": model.text.vocab_size, "eos_id": model.text.eos_id},
            "embed_dim": model.image.projection.out_features,
            "max_logit_scale": model.max_logit_scale,
            "min_logit_scale": model.min_logit_scale,
            "logit_bias": model.logit_bias is not None,
        },
        expected={name: t for name, t in model.state_dict().items() if not name.startswith(AUXILIARY)},
        pictures=pictures,
        tokenizer=tokenizer,
        pipeline="zero-shot-image-classification",
        replace=replace,
        requires=requires,
    )


def write_folder(
    to: Path,
    model: Exportable,
    weights: Iterable[tuple[str, Tensor]],
    card: str,
    max_shard_bytes: int,
    check: Callable[[Path], None],
) -> int:
    """Write everything beside `to`, let `check` look at it, and only then give it its name; returns bytes of weights.

    Args:
        to: a folder that does not exist or is empty.
        weights: the zoo's names with tensors, each once.
        card: README.md.
        check: raises if the folder is not good; nothing is left then.

    Raises:
        FileExistsError: there is something in `to`.
        StateDictError: the weights are not the model's.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise FileExistsError(str(to))
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_code(partial, model)
        _write_processors(partial, model)
        (partial / "README.md").write_text(card, encoding="utf-8")
        expected = {PREFIX + name: tensor for name, tensor in model.expected.items()}
        total = write_weights(partial, expected, ((PREFIX + name, tensor) for name, tensor in weights), max_shard_bytes)
        check(partial)
        partial.rename(to)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return total


def _write_code(folder: Path, model: Exportable) -> None:
    about = f"INTERN for transformers, made from the trainer's sources ({model.module}) at export. Apache-2.0."
    source = flatten(model.module, model.replace, ("torch", "transformers", *model.requires))
    (folder / f"{model.file}.py").write_text(f'"""{about}"""\n\n{source}', encoding="utf-8")
    config = {
        "architectures": [model.auto_classes["AutoModel"]],
        "auto_map": {auto: f"{model.file}.{name}" for auto, name in model.auto_classes.items()},
        "dtype": "float32",
        "transformers_version": transformers.__version__,
        **model.config,
    }
    _write_json(folder / "config.json", config)


def _write_processors(folder: Path, model: Exportable) -> None:
    pictures = model.pictures
    processor = "CLIPProcessor" if model.tokenizer else None
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": pictures.size},
        "resample": 3,  # Pillow's BICUBIC
        "do_center_crop": True,
        "crop_size": {"height": pictures.size, "width": pictures.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pictures.mean),
        "image_std": list(pictures.std),
    }
    _write_json(
        folder / "preprocessor_config.json", {key: value for key, value in settings.items() if value is not None}
    )
    if model.tokenizer:
        save_tokenizer(folder, model.tokenizer)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
