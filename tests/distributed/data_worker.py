"""What one rank does in the tests of the readers."""

from __future__ import annotations

from itertools import islice
from typing import Any

from intern_trainer.data import build_train_data, pairs
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks

from tests.unit.trainer.data.shards import WORDS, config


def read(ranks: Ranks, payload: dict[str, Any]) -> dict[str, Any]:
    """Ids of this rank: of training batches, a list a step, and of the evaluation set; or the error's text."""
    settings = config(payload["train"], workers=payload["workers"], max_bad_fraction=0.2)
    try:
        data = build_train_data(settings, ranks, WORDS)
        steps = [[id for batch in step for id in batch.ids] for step in islice(data.batches(payload["step"]), 6)]
        data.close()
        found = pairs(list(settings.data.train), settings, ranks)
        evaluated = [id for batch in found for id in batch.ids]
        found.agree()
    except DataError as error:
        return {"error": str(error)}
    return {"steps": steps, "evaluated": evaluated, "report": found.report, "fingerprint": data.fingerprint}
