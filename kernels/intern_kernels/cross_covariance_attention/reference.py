"""Cross-covariance attention in plain torch: the definition that every faster form is compared with.

Legend: b batch, n positions (tokens), h heads, d channels of a head (queries), e channels of a head (keys, values).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_covariance_attention(
    q_bnhd: torch.Tensor, k_bnhd: torch.Tensor, v_bnhd: torch.Tensor, temperature_h11: torch.Tensor
) -> torch.Tensor:
    """Mix the channels of each head by the softmax of their correlation over positions.

        out[n, d] = sum_e softmax_e(t * <q[:, d] / |q[:, d]|, k[:, e] / |k[:, e]|>) v[n, e]

    Arguments have the shapes that their names say, `temperature_h11` is [h, 1, 1]; returns [b, n, h, d] in the dtype
    of `v_bnhd`. Norms and softmax are taken in at least fp32 (a norm sums over all positions). Source: XCiT
    (arXiv 2106.09681), as used in the released MetaNet MN-B15.
    """
    exact = torch.promote_types(q_bnhd.dtype, torch.float32)
    q_bhdn = F.normalize(q_bnhd.permute(0, 2, 3, 1).to(exact), dim=-1)
    k_bhen = F.normalize(k_bnhd.permute(0, 2, 3, 1).to(exact), dim=-1)
    correlation_bhde = q_bhdn @ k_bhen.transpose(-2, -1)
    mix_bhde = (temperature_h11.to(exact) * correlation_bhde).softmax(dim=-1).to(v_bnhd.dtype)
    out_bhnd = v_bnhd.transpose(1, 2) @ mix_bhde.transpose(-2, -1)
    return out_bhnd.transpose(1, 2)
