"""Model FLOPs utilisation: the share of the device's peak that goes into the model's own arithmetic."""

from __future__ import annotations

import torch

# Dense peak in TFLOP/s by (part of the device's name, precision), from NVIDIA's data sheets. fp32 is that of plain fp32
# arithmetic, since nothing here turns TF32 on. The first match counts, so longer names come first.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("GB200", {"bf16": 2500, "fp16": 2500}),
    ("B200", {"bf16": 2250, "fp16": 2250}),
    ("B100", {"bf16": 1750, "fp16": 1750}),
    ("H100 PCIe", {"bf16": 756, "fp16": 756, "fp32": 51}),
    ("H100 NVL", {"bf16": 835, "fp16": 835, "fp32": 60}),
    ("GH200", {"bf16": 989, "fp16": 989, "fp32": 67}),
    ("H200", {"bf16": 989, "fp16": 989, "fp32": 67}),
    ("H100", {"bf16": 989, "fp16": 989, "fp32": 67}),
    ("H800", {"bf16": 989, "fp16": 989, "fp32": 67}),
    ("A100", {"bf16": 312, "fp16": 312, "fp32": 19.5}),
    ("A800", {"bf16": 312, "fp16": 312, "fp32": 19.5}),
    ("L40S", {"bf16": 362, "fp16": 362, "fp32": 91.6}),
    ("A10", {"bf16": 125, "fp16": 125, "fp32": 31.2}),
    ("V100", {"fp16": 125, "fp32": 15.7}),
    ("T4", {"fp16": 65, "fp32": 8.1}),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s of one device at `precision` (`fp32`, `bf16`, `fp16`), or None where it is not known (a CPU, an
    unlisted device).
    """
    for part, peaks in _PEAKS:
        if part in device_name:
            peak = peaks.get(precision)
            return None if peak is None else peak * 1e12
    return None


def device_peak(device: torch.device, precision: str) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def utilisation(flops_per_sample: float, samples_per_second: float, devices: int, peak: float | None) -> float | None:
    """Training FLOPs per second over the peak of all devices.

    Args:
        flops_per_sample: forward FLOPs of one sample (a multiply-add counts 2). Backward costs twice that;
            recomputation is not counted as useful.
        samples_per_second: over all devices together.

    Returns:
        a fraction, or None where the peak is not known.
    """
    if peak is None:
        return None
    return 3 * flops_per_sample * samples_per_second / (devices * peak)
