"""From shards of pictures and captions to batches.

`order.py` says which sample comes when; `train.py` and `evaluation.py` read them.
"""

from intern_trainer.data.evaluation import EvalPairs, image_folder, pairs
from intern_trainer.data.shared import Readable, share
from intern_trainer.data.train import TrainData, build_train_data
from intern_trainer.data.views import PlainText, Views

__all__ = [
    "EvalPairs",
    "PlainText",
    "Readable",
    "TrainData",
    "Views",
    "build_train_data",
    "image_folder",
    "pairs",
    "share",
]
