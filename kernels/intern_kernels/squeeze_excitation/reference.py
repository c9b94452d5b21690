"""Normalise, activate, gate each channel by a function of all channels' means, in plain torch: the definition."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from intern_kernels.normalise.reference import activated


def squeeze_excitation(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    gate: Callable[[Tensor], Tensor],
) -> Tensor:
    """phi gate(mean of phi over positions), phi = act((x - mean) rstd weight + bias), in the dtype of x.

    The normalisation is handed over as in `normalise`; `gate` maps [b, c] to [b, c].
    """
    phi_bhwc = activated(x_bhwc, mean, rstd, weight_c, bias_c, act)
    gate_bc = gate(phi_bhwc.mean(dim=(1, 2)).to(x_bhwc.dtype))
    return (phi_bhwc * gate_bc[:, None, None, :]).to(x_bhwc.dtype)
