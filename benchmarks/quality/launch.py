"""open_clip's trainer with our image models: `python -m benchmarks.quality.launch MODEL.json ARGUMENTS ...`."""

from __future__ import annotations

import sys
from functools import partial

import intern_zoo  # noqa: F401  makes MetaNet known to timm
import open_clip
from open_clip_train import data
from open_clip_train.main import main

if __name__ == "__main__":
    # webdataset 1.0 marks the end of each shard by an empty entry, which this reader does not know
    data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
    open_clip.add_model_config(sys.argv[1])
    main(sys.argv[2:])
