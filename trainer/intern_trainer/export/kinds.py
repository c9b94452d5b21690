"""Which transformers model a task's model becomes: one function for each task."""

from __future__ import annotations

from collections.abc import Callable

from intern_zoo.hf.export import Exportable, Pictures, two_tower_exportable
from torch import nn

from intern_trainer.config.schema import Config
from intern_trainer.text import text_tokenizer


def _two_tower(model: nn.Module, config: Config) -> Exportable:
    settings = config.model
    return two_tower_exportable(
        model,  # type: ignore[arg-type]  # the tasks of stage 1 build a TwoTower
        image=settings.image,
        image_options=dict(settings.image_options),
        tokenizer=text_tokenizer(settings.text),
        text=settings.text.model_dump(include={"context_length", "width", "layers", "heads"}),
        pictures=Pictures(settings.image_size, config.data.mean, config.data.std),
    )


KINDS: dict[str, Callable[[nn.Module, Config], Exportable]] = {"contrastive": _two_tower, "local": _two_tower}
"""By `config.task`: the model (meta is enough) and its configuration to what `intern_zoo.hf.export.write_folder`
takes."""
