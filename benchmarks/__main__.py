"""`python -m benchmarks NAME ...`: measure, print, and write benchmarks/results/NAME.json."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / root) for root in ("kernels", "model_zoo", "trainer")]

BENCHMARKS = {
    "figures": "what each loss reaches on the embedded and the emoji data: 3 seeds, and a control with shuffled titles",
    "order": "start and resume at full size: 1 M shards, 10 B samples, 1,024 ranks; time to the first batch, memory",
    "storage": "our loader on simulated object storage: throughput against the bandwidth, bytes read against used",
    "loop": "our training loop with DeepSpeed against a bare PyTorch loop",
    "drop_path": "stochastic depth that computes the kept samples alone against the masked form",
    "local": "what the local phase does for dense tasks: probes of the first phase, of more of it, of the local phase",
    "quality": "compute to equal held-out R@1: the fast recipe and open_clip's trainer against plain training",
    "plan": "our plan of a run's memory against DeepSpeed's and accelerate's estimators",
    "pipeline": "how long a pipeline's ranks wait, against the formula and torch's own; how often ZeRO gathers in it",
    "saves": "how long a checkpoint holds up training: written in the background against at once",
    "billion": "one billion parameters on this machine: trained, saved, resumed, exported, memory against the plan",
    "loader": "our loader against open_clip's own pipeline, plain webdataset and litdata",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in BENCHMARKS:
        print(__doc__, *(f"  {name:<8} {what}" for name, what in BENCHMARKS.items()), sep="\n")
        return 0 if arguments in ([], ["--help"], ["-h"]) else 2
    return int(importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
