"""open_clip's trainer with our image models: `python -m benchmarks.quality.launch MODEL.json ARGUMENTS ...`."""

from __future__ import annotations

import sys

import intern_zoo  # noqa: F401  makes MetaNet known to timm
import open_clip
from open_clip_train.main import main

if __name__ == "__main__":
    open_clip.add_model_config(sys.argv[1])
    main(sys.argv[2:])
