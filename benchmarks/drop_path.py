"""Stochastic depth by a factor of 0 ("mask", as released) against computing the kept rows alone ("rows").

FLOPs of a forward pass in training, and seconds of forward and backward pass, interleaved, best of a few.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from intern_zoo import create_model
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import save

MODES = ("mask", "rows")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks drop_path", description=__doc__)
    parser.add_argument("--model", default="metanet_b4")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels (default 96)")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step (default 16)")
    parser.add_argument("--rate", type=float, default=0.3, help="drop rate of the last block (default 0.3)")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each form (default 5)")
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randn(chosen.batch, 3, chosen.size, chosen.size, device=device)
    models: dict[str, Any] = {
        mode: create_model(chosen.model, num_classes=0, drop_path_rate=chosen.rate, drop_path_mode=mode).to(device)
        for mode in MODES
    }
    flops, seconds = {mode: count(model.train(), images) for mode, model in models.items()}, {m: [] for m in MODES}
    for _ in range(chosen.repeats + 1):
        for mode, model in models.items():
            seconds[mode].append(timed(model, images))
    best = {mode: min(taken[1:]) for mode, taken in seconds.items()}
    figures = {
        "what": f"{chosen.model}, {chosen.size} px, batch {chosen.batch}, drop_path_rate {chosen.rate}, {device.type}",
        "threads": torch.get_num_threads(),
        "forward_flops": flops,
        "seconds_forward_and_backward": best,
        "flops_ratio": flops["rows"] / flops["mask"],
        "seconds_ratio": best["rows"] / best["mask"],
    }
    print(figures["what"])
    print(f"rows / mask: FLOPs {figures['flops_ratio']:.3f}, seconds {figures['seconds_ratio']:.3f}")
    print(save("drop_path", figures))
    return 0 if figures["flops_ratio"] < 1 else 1


def count(model: Any, images: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops())


def timed(model: Any, images: torch.Tensor) -> float:
    started = time.perf_counter()
    model(images).square().mean().backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
