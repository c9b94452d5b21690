"""One rank, as `ranks.on_ranks` starts it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from intern_trainer.ranks import init_ranks


def main(module: str, payload: str, result: str) -> None:
    ranks = init_ranks()
    found = importlib.import_module(f"benchmarks.pipeline.{module}").work(ranks, json.loads(payload))
    if ranks.is_main:
        Path(result).write_text(json.dumps(found), encoding="utf-8")
    ranks.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
