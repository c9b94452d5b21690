"""Does the image tower take pictures of every size that the phases give it?"""

from __future__ import annotations

import torch
from intern_zoo import create_model
from intern_zoo.two_tower import sized_options

from intern_trainer.config.phases import Phases
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError


def check_picture_sizes(config: Config) -> None:
    """Try each size once, on meta tensors: no memory, and a second at most. MetaNets and most convolutional networks
    take any size; a ViT has one position a patch.

    Raises:
        ConfigError: a size that the model refuses.
    """
    model = config.model
    sides = {span.image_size for span in Phases(config).spans} - {model.image_size}
    options = sized_options(model.image, model.image_size, dict(model.image_options))
    if not sides or "img_size" not in options:
        return
    with torch.device("meta"), torch.no_grad():
        try:
            trunk = create_model(model.image, num_classes=0, **options).eval()
        except (TypeError, ValueError):
            return  # an option that it does not know: told where the model is built
        for side in sorted(sides):
            try:
                trunk(torch.zeros(1, 3, side, side))
            except (AssertionError, RuntimeError, ValueError) as error:  # timm's words
                raise ConfigError(
                    f"train.phases has pictures of {side} pixels, and {model.image}: {error}",
                    "a ViT's positions belong to one size, unless they are interpolated",
                    "model.image_options={dynamic_img_size: true} and multiples of its patch size, or a MetaNet",
                ) from error
