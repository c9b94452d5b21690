"""Load an exported two-tower folder as its users will, and keep what it computes.

Run as a program of its own (`python -I reload.py FOLDER INPUTS OUTPUTS`): `-I` and the check at the end make sure
that nothing of ours is needed. INPUTS is a folder with inputs.safetensors (`image` [n, 3, h, w], `text` [m, l]),
texts.json and pictures *.png; OUTPUTS becomes a safetensors file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: str, inputs: str, outputs: str) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel, AutoProcessor, pipeline

    tensors = load_file(Path(inputs) / "inputs.safetensors")
    texts = json.loads((Path(inputs) / "texts.json").read_text(encoding="utf-8"))
    pictures = [Image.open(path) for path in sorted(Path(inputs).glob("*.png"))]

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        out = model(pixel_values=tensors["image"], input_ids=tensors["text"])
    del model  # the pipeline loads its own
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    length = tensors["text"].shape[1]
    made = processor(
        text=texts, images=pictures, return_tensors="pt", padding="max_length", truncation=True, max_length=length
    )
    classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
    scores = [
        {result["label"]: result["score"] for result in results}
        for results in classify(pictures, candidate_labels=texts, hypothesis_template="{}")
    ]
    save_file(
        {
            "image_features": out.image_embeds.contiguous(),
            "text_features": out.text_embeds.contiguous(),
            "logits": out.logits_per_image.contiguous(),
            "pixel_values": made["pixel_values"].contiguous(),
            "input_ids": made["input_ids"].contiguous(),
            "scores": torch.tensor([[row[text] for text in texts] for row in scores]),
        },
        outputs,
    )
    ours = sorted(name for name in sys.modules if name.startswith("intern_") and "." not in name)
    if ours:
        raise SystemExit(f"the folder needs {ours}, which its users do not have")


if __name__ == "__main__":
    main(*sys.argv[1:])
