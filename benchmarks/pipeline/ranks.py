"""Gloo ranks of a measurement, started by torchrun: `on_ranks("bubble", 4, ...)` calls `work` of
`benchmarks.pipeline.bubble` on each of four.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def on_ranks(module: str, ranks: int, payload: Any) -> Any:
    """What `work(ranks, payload)` gives on rank 0; payload and result are JSON values.

    Raises:
        SystemExit: a rank failed; it has said why.
    """
    roots = [str(REPOSITORY / root) for root in ("kernels", "model_zoo", "trainer", ".")]
    path = os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        rank = ["-m", "benchmarks.pipeline.one_rank", module, json.dumps(payload), str(result)]
        done = subprocess.run([*launcher, *rank], cwd=REPOSITORY, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"benchmarks.pipeline.{module} on {ranks} ranks ended with {done.returncode}")
        return json.loads(result.read_text(encoding="utf-8"))
