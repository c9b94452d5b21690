"""Weights and pictures that anyone can draw again, and digests of what a network makes of them.

The rule: a tensor of a given name and shape is drawn by numpy's PCG64, seeded with the SHA-256 of its name, so that no
weights need to be stored. Nothing is left at a value at which a block would be an identity: layer scales, the last
norm of each block and the running statistics are all far from where training begins.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers in [-1, 1), fp32."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    count = int(np.prod(shape, dtype=np.int64))
    unit = np.random.Generator(np.random.PCG64(seed)).random(count, dtype=np.float32)
    return torch.from_numpy(unit.reshape(shape)).mul_(2.0).sub_(1.0)


def seeded_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of the released key `name`."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    unit = draw(name, shape)
    if name.endswith(("gamma_1", "gamma_2")):
        return 0.3 + 0.2 * unit
    if name.endswith("temperature"):
        return 1.5 + unit
    if name.endswith(("b2.2.weight", "b2.5.weight")):  # the last norm of a convolution block: how much the block adds
        return 0.3 + 0.15 * unit
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return 1.0 + 0.5 * unit
    if name.endswith("weight"):
        fan_in = int(np.prod(shape[1:], dtype=np.int64))
        gain = 0.2 if name.endswith("pos_embed.weight") else 1.0  # it is added to its input: keep that from exploding
        return unit.mul_(gain * (3.0 / fan_in) ** 0.5)  # variance gain^2 / fan_in
    return 0.2 * unit  # biases, running means


def seeded_picture(batch: int, height: int, width: int) -> torch.Tensor:
    """A noise picture [batch, 3, height, width] with values in [-1.7, 1.7] (variance one)."""
    return draw(f"picture {batch} {height} {width}", (batch, 3, height, width)) * 3.0**0.5


def digest(tensor: torch.Tensor) -> dict[str, object]:
    """Mean, deviation, largest magnitude, eight entries spread over the tensor, and two random projections."""
    flat = tensor.detach().double().flatten()
    spots = torch.linspace(0, len(flat) - 1, 8).round().long()
    axes = [draw(f"axis {i}", (len(flat),)).double() for i in (1, 2)]
    numbers = [
        flat.mean(),
        flat.std(),
        flat.abs().max(),
        *flat[spots],
        *(flat @ axis / len(flat) ** 0.5 for axis in axes),
    ]
    return {"shape": list(tensor.shape), "numbers": [float(f"{x.item():.9g}") for x in numbers]}


def largest_difference(found: dict[str, object], kept: dict[str, object]) -> float:
    """Between two digests, against the tensor's largest magnitude; infinite when shapes differ."""
    if found["shape"] != kept["shape"]:
        return float("inf")
    a, b = np.array(found["numbers"]), np.array(kept["numbers"])
    return float(np.abs(a - b).max() / b[2])
