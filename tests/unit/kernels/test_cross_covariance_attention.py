"""Cross-covariance attention against its formula written out, and its gradient against finite differences."""

from __future__ import annotations

import torch
from intern_kernels.cross_covariance_attention import cross_covariance_attention


def _inputs(n: int = 7, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 4, dtype=dtype, generator=generator) for _ in range(3))
    return q, k, v, torch.tensor([0.5, 1.0, 3.0], dtype=dtype).view(3, 1, 1)


def test_equals_the_formula_head_by_head() -> None:
    q, k, v, temperature = _inputs()
    out = cross_covariance_attention(q, k, v, temperature)
    for b in range(2):
        for h in range(3):
            q_nd, k_nd, v_nd = q[b, :, h], k[b, :, h], v[b, :, h]
            mixed = torch.zeros(7, 4, dtype=torch.float64)
            for d in range(4):
                scores = torch.stack(
                    [q_nd[:, d] @ k_nd[:, e] / (q_nd[:, d].norm() * k_nd[:, e].norm()) for e in range(4)]
                )
                weights = torch.softmax(temperature[h, 0, 0] * scores, dim=0)
                mixed[:, d] = sum(weights[e] * v_nd[:, e] for e in range(4))
            torch.testing.assert_close(out[b, :, h], mixed, rtol=1e-9, atol=1e-9)


def test_order_of_positions_only_moves_the_output() -> None:
    q, k, v, temperature = _inputs()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    out = cross_covariance_attention(q, k, v, temperature)
    moved = cross_covariance_attention(q[:, order], k[:, order], v[:, order], temperature)
    torch.testing.assert_close(moved, out[:, order], rtol=1e-9, atol=1e-9)


def test_gradient() -> None:
    q, k, v, temperature = _inputs(n=3)
    inputs = [tensor.clone().requires_grad_() for tensor in (q[:1], k[:1], v[:1], temperature)]
    assert torch.autograd.gradcheck(cross_covariance_attention, inputs)


def test_a_silent_channel_gives_no_nan() -> None:
    q, k, v, temperature = _inputs()
    q[..., 0] = 0.0
    q.requires_grad_()
    cross_covariance_attention(q, k, v, temperature).sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_half_precision_keeps_its_dtype_and_comes_close() -> None:
    q, k, v, temperature = _inputs(n=49, dtype=torch.float32)
    exact = cross_covariance_attention(q, k, v, temperature)
    half = cross_covariance_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), temperature.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.0, atol=0.03)
