"""Gradients of a normalisation's mean, rstd, weight and bias, of the sums that a backward kernel makes.

With v = (x - mean) rstd weight + bias and dv the gradient of v. See normalise/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Needs = Sequence[bool]
"""Whether (mean, rstd, weight, bias) are asked for."""


def wanted(mean: Tensor | None, needs: Needs) -> tuple[bool, bool]:
    """Whether sums over positions are needed, and whether sums over channels are."""
    rows = mean is not None and mean.dim() > 1
    of_statistics, of_weights = any(needs[:2]), any(needs[2:])
    return of_weights or (of_statistics and not rows), of_statistics and rows


def norm_gradients(
    needs: Needs, rstd: Tensor | None, weight_c: Tensor | None, sums: Tensor, row_sums: Tensor
) -> tuple[Tensor | None, ...]:
    """(dmean, drstd, dweight, dbias), None where not needed.

    Args:
        sums: fp32 [2, c]: over positions, of dv and of dv (x - mean) rstd.
        row_sums: fp32 [2, b, h, w], where statistics belong to positions: over channels, of dv weight and of
            dv weight (x - mean).
    """
    if rstd is None or weight_c is None:
        return None, None, None, None
    if rstd.dim() > 1:
        dmean = -rstd * row_sums[0] if needs[0] else None
        drstd = row_sums[1] if needs[1] else None
    else:
        dmean = -rstd * weight_c.float() * sums[0] if needs[0] else None
        drstd = weight_c.float() * sums[1] / rstd if needs[1] else None
    dweight = sums[1].to(weight_c.dtype) if needs[2] else None
    return dmean, drstd, dweight, sums[0].to(weight_c.dtype) if needs[3] else None
