"""The model card of an exported folder: what it is, how to use it, how it was made, and what is known of its
quality."""

from __future__ import annotations

from typing import Any

import yaml

from intern_trainer.config.schema import Config
from intern_trainer.observe.versions import blank_secrets

_USE = """```python
from PIL import Image
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{folder}", trust_remote_code=True)
classify(Image.open("picture.png"), candidate_labels=["a cat", "a dog"], hypothesis_template="{{}}")
```

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)  # device_map="auto" with accelerate installed
processor = AutoProcessor.from_pretrained("{folder}", trust_remote_code=True)
inputs = processor(text=["a cat", "a dog"], images=Image.open("picture.png"), return_tensors="pt", padding=True)
probabilities = model(**inputs).logits_per_image.softmax(dim=-1)
```"""

_SIGMOID = (
    "Trained with the sigmoid loss: `model(**inputs).logits_per_image.sigmoid()` is the probability that a picture and "
    "a text belong together, each pair by itself. The softmax above, and the pipeline's scores, choose among the texts "
    "that are given."
)

_PIECES = {"clip": "CLIP's byte pairs"}
_RECIPE = {"task", "init", "model", "loss", "data", "optim", "train", "parallel", "ds"}
"""The sections of the configuration that made the weights what they are."""


def model_card(
    config: Config,
    folder: str,
    pipeline: str,
    requires: tuple[str, ...],
    parameters: int,
    origin: dict[str, Any],
    evaluations: list[dict[str, Any]],
) -> str:
    """README.md with the front matter that model hubs read.

    Args:
        folder: name of the folder, for the examples.
        requires: packages besides torch, transformers and Pillow.
        origin: step, samples, weights, versions and the like, shown as they are.
        evaluations: entries of RUN/evaluation.json of these very weights.
    """
    front = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "tags": ["intern", "metanet", "clip", "image-text"],
    }
    packages = ", ".join(("torch", "transformers >= 5.10.1", "Pillow", *requires))
    recipe = config.model_dump(mode="json", by_alias=True, include=_RECIPE)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {config.model.image}, image-text ({parameters / 1e6:,.1f} M parameters)",
        f"Trained with INTERN's stage 1 (arXiv 2111.08687; an independent implementation). Needs {packages}.",
        _USE.format(folder=folder),
        f"Pictures: short side to {config.model.image_size} pixels (bicubic), the middle square, normalised. "
        f"Texts: {_PIECES.get(config.model.text.tokenizer, 'its own tokenizer')}, "
        f"{config.model.text.context_length} tokens at most.",
        *([_SIGMOID] if config.loss.kind == "siglip" else []),
        "## Where it comes from",
        "\n".join(f"- {name}: {value}" for name, value in origin.items()),
        "## Figures",
        _figures(evaluations),
        "## Recipe",
        f"```yaml\n{blank_secrets(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))}```",
        "## Licence and limits",
        "The code is under Apache-2.0. What the weights may be used for also depends on the data that they were "
        "trained on, see `data.train` above. The model repeats what its data holds, errors and prejudice included; "
        "where no figures stand above, its quality is unknown.",
    ]
    return "\n\n".join(parts) + "\n"


def _figures(evaluations: list[dict[str, Any]]) -> str:
    if not evaluations:
        return "These weights were not evaluated before they were exported (`intern-trainer eval RUN` does it)."
    tables = []
    for entry in evaluations:
        rows = [
            f"| {name} | {value:.2%} | {_share(entry['chance'].get(name))} |"
            for name, value in entry["results"].items()
        ]
        counts = ", ".join(f"{name} {value}" for name, value in entry["counts"].items())
        tables.append(
            "\n".join(
                [
                    f"Split `{entry['split']}` ({counts}):",
                    "",
                    "| figure | value | chance |",
                    "| --- | --- | --- |",
                    *rows,
                ]
            )
        )
    return "\n\n".join(tables)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
