"""What a user of an exported folder runs: `python load_export.py FOLDER PICTURE DEVICE_MAP`. Prints JSON."""

import importlib.util
import json
import sys

import torch
from PIL import Image
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

folder, picture, device_map = sys.argv[1:]
texts = ["a red square", "a house", "a cat"]
image = Image.open(picture)
# so little memory that some of the model goes to the disk: accelerate then moves every input and weight
spread = {"device_map": device_map, "max_memory": {"cpu": 7_500_000}, "offload_folder": "offloaded"}
options = spread if device_map != "none" else {}
model = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True, **options)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text=texts, images=image, return_tensors="pt", padding=True)
with torch.no_grad():
    probabilities = model(**inputs).logits_per_image.softmax(dim=-1)[0].tolist()
    alone = AutoModel.from_pretrained(folder, trust_remote_code=True)
    features = alone.get_image_features(inputs["pixel_values"])
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
scores = {r["label"]: r["score"] for r in classify(image, candidate_labels=texts, hypothesis_template="{}")}
absent = (
    "torchvision",
    "open_clip",
    "timm",
    "intern_zoo",
    "intern_trainer",
    "intern_kernels",
    "deepspeed",
    "accelerate",
)
print(
    json.dumps(
        {
            "probabilities": probabilities,
            "scores": [scores[text] for text in texts],
            "feature_norm": features.norm().item(),
            "devices": sorted(set(map(str, getattr(model, "hf_device_map", {}).values()))),
            "found": [name for name in absent if importlib.util.find_spec(name)],
        }
    )
)
