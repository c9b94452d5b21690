"""Cross-covariance attention in Triton: one program a head of a sample, which goes over its positions twice.

Legend as in `reference.py`: b batch, n positions, h heads, d channels of a head of queries (and of the output), e of
keys and values. s_de is the correlation of the channels, a_de its softmax, p_de the gradient of t * s_de.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels.launch import Config, launch
from intern_kernels.products import dot, dot_precision
from intern_kernels.tuning import pick

EPS = 1e-12
"""Least length that a channel is divided by, as in `torch.nn.functional.normalize`."""


@triton.jit
def _tile(start, at_n, stride_n, n, at_d, d, DTYPE: tl.constexpr):
    """[BLOCK_N, BLOCK_D] of one head's positions; zero beyond n and d."""
    inside = (at_n < n)[:, None] & (at_d < d)[None, :]
    return tl.load(start + at_n[:, None].to(tl.int64) * stride_n + at_d[None, :], mask=inside, other=0.0).to(DTYPE)


@triton.jit
def _put(start, at_n, stride_n, n, at_d, d, value):
    inside = (at_n < n)[:, None] & (at_d < d)[None, :]
    place = start + at_n[:, None].to(tl.int64) * stride_n + at_d[None, :]
    tl.store(place, value.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _softmax(s_de, temperature, at_e, e):
    """Softmax over e of t * s; columns beyond e get nothing."""
    z_de = tl.where((at_e < e)[None, :], temperature * s_de, float("-inf"))
    z_de = tl.exp(z_de - tl.max(z_de, axis=1)[:, None])
    return z_de / tl.sum(z_de, axis=1)[:, None]


@triton.jit
def xca_forward(
    q_ptr, k_ptr, v_ptr, temperature_ptr, out_ptr,
    n, heads, d, e,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    EPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    at_d, at_e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    out_ptr += (b * n * heads + h) * d
    s_de = tl.zeros((BLOCK_D, BLOCK_E), tl.float32)
    qq_d, kk_e = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_E,), tl.float32)
    for start in range(0, n, BLOCK_N):
        at_n = start + tl.arange(0, BLOCK_N)
        q_nd = _tile(q_ptr, at_n, q_n, n, at_d, d, q_ptr.dtype.element_ty)
        k_ne = _tile(k_ptr, at_n, k_n, n, at_e, e, k_ptr.dtype.element_ty)
        s_de = dot(tl.trans(q_nd), k_ne, s_de, PRECISION)
        qq_d += tl.sum(q_nd.to(tl.float32) * q_nd.to(tl.float32), axis=0)
        kk_e += tl.sum(k_ne.to(tl.float32) * k_ne.to(tl.float32), axis=0)
    s_de = s_de / tl.maximum(tl.sqrt(qq_d), EPS)[:, None] / tl.maximum(tl.sqrt(kk_e), EPS)[None, :]
    a_de = _softmax(s_de, tl.load(temperature_ptr + h).to(tl.float32), at_e, e)
    a_ed = tl.trans(a_de).to(v_ptr.dtype.element_ty)
    for start in range(0, n, BLOCK_N):
        at_n = start + tl.arange(0, BLOCK_N)
        v_ne = _tile(v_ptr, at_n, v_n, n, at_e, e, v_ptr.dtype.element_ty)
        _put(out_ptr, at_n, heads * d, n, at_d, d, dot(v_ne, a_ed, None, PRECISION))


@triton.jit
def xca_backward(
    g_ptr, q_ptr, k_ptr, v_ptr, temperature_ptr, dq_ptr, dk_ptr, dv_ptr, dt_ptr,
    n, heads, d, e,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    EPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
    PRODUCT: tl.constexpr, PRODUCT_PRECISION: tl.constexpr,
):  # fmt: skip
    """PRODUCT: what small gradients are rounded to before they are multiplied."""
    b, h = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    at_d, at_e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    g_ptr += (b * n * heads + h) * d
    dq_ptr += (b * n * heads + h) * d
    dk_ptr += (b * n * heads + h) * e
    dv_ptr += (b * n * heads + h) * e
    s_de, da_de = tl.zeros((BLOCK_D, BLOCK_E), tl.float32), tl.zeros((BLOCK_D, BLOCK_E), tl.float32)
    qq_d, kk_e = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_E,), tl.float32)
    for start in range(0, n, BLOCK_N):
        at_n = start + tl.arange(0, BLOCK_N)
        q_nd = _tile(q_ptr, at_n, q_n, n, at_d, d, q_ptr.dtype.element_ty)
        k_ne = _tile(k_ptr, at_n, k_n, n, at_e, e, k_ptr.dtype.element_ty)
        s_de = dot(tl.trans(q_nd), k_ne, s_de, PRECISION)
        qq_d += tl.sum(q_nd.to(tl.float32) * q_nd.to(tl.float32), axis=0)
        kk_e += tl.sum(k_ne.to(tl.float32) * k_ne.to(tl.float32), axis=0)
    q_d, k_e = tl.sqrt(qq_d), tl.sqrt(kk_e)
    over_q_d, over_k_e = 1 / tl.maximum(q_d, EPS), 1 / tl.maximum(k_e, EPS)
    s_de = s_de * over_q_d[:, None] * over_k_e[None, :]
    mix_de = _softmax(s_de, tl.load(temperature_ptr + h).to(tl.float32), at_e, e).to(PRODUCT)
    for start in range(0, n, BLOCK_N):
        at_n = start + tl.arange(0, BLOCK_N)
        g_nd = _tile(g_ptr, at_n, heads * d, n, at_d, d, g_ptr.dtype.element_ty)
        v_ne = _tile(v_ptr, at_n, v_n, n, at_e, e, v_ptr.dtype.element_ty)
        da_de = dot(tl.trans(g_nd), v_ne, da_de, PRECISION)
        dv_ne = dot(g_nd.to(PRODUCT), mix_de, None, PRODUCT_PRECISION)
        _put(dv_ptr, at_n, heads * e, n, at_e, e, dv_ne)
    # the softmax once more, of a temperature that is loaded once more: registers do not hold it through the loop above
    temperature = tl.load(temperature_ptr + h).to(tl.float32)
    a_de = _softmax(s_de, temperature, at_e, e)
    p_de = a_de * (da_de - tl.sum(a_de * da_de, axis=1)[:, None])
    tl.store(dt_ptr + tl.program_id(0), tl.sum(tl.sum(p_de * s_de, axis=1), axis=0))
    p_de *= temperature
    # a channel shorter than EPS is divided by a constant: nothing flows through its length
    along_q_d = tl.where(q_d < EPS, 0.0, tl.sum(p_de * s_de, axis=1) * over_q_d)
    along_k_e = tl.where(k_e < EPS, 0.0, tl.sum(p_de * s_de, axis=0) * over_k_e)
    to_q_ed = tl.trans(p_de * over_k_e[None, :]).to(PRODUCT)
    to_k_de = (p_de * over_q_d[:, None]).to(PRODUCT)
    for start in range(0, n, BLOCK_N):
        at_n = start + tl.arange(0, BLOCK_N)
        q_nd = _tile(q_ptr, at_n, q_n, n, at_d, d, PRODUCT)
        k_ne = _tile(k_ptr, at_n, k_n, n, at_e, e, PRODUCT)
        dq_nd = dot(k_ne, to_q_ed, None, PRODUCT_PRECISION) - q_nd * along_q_d[None, :]
        _put(dq_ptr, at_n, heads * d, n, at_d, d, dq_nd * over_q_d[None, :])
        dk_ne = dot(q_nd, to_k_de, None, PRODUCT_PRECISION) - k_ne * along_k_e[None, :]
        _put(dk_ptr, at_n, heads * e, n, at_e, e, dk_ne * over_k_e[None, :])


def config(d: int, e: int, n: int, dtype: torch.dtype, backward: bool) -> Config:
    """Whole heads are held at once, two matrices d x e of fp32 in registers in the backward pass, where the products
    of fp32 also take twice the shared memory.
    """
    block_d, block_e = (max(16, triton.next_power_of_2(width)) for width in (d, e))
    large = block_d * block_e > 32 * 32
    most = 32 if backward and (dtype == torch.float32 or block_d * block_e > 64 * 64) else 64
    block_n = min(most, max(16, triton.next_power_of_2(n)))
    warps = 8 if large and (backward or block_d * block_e > 64 * 64) else 4
    return Config({"BLOCK_N": block_n, "BLOCK_D": block_d, "BLOCK_E": block_e}, num_warps=warps, num_stages=1)


def space(d: int, e: int, n: int, dtype: torch.dtype, backward: bool) -> Sequence[Config]:
    """Fewer positions at a time, loads ahead of their use, other numbers of warps; a head's width leaves no choice."""
    base = config(d, e, n, dtype, backward)
    warps = base.num_warps
    short = {**base.constants, "BLOCK_N": max(16, base["BLOCK_N"] // 2)}
    return [
        base,
        Config(base.constants, warps, num_stages=2),
        Config(short, warps, num_stages=2),
        Config(base.constants, 12 - warps, num_stages=1),
    ]


def forward(q_bnhd: Tensor, k_bnhe: Tensor, v_bnhe: Tensor, temperature_h: Tensor) -> Tensor:
    """[b, n, h, d] in the dtype of the inputs."""
    b, n, heads, d = q_bnhd.shape
    e = v_bnhe.shape[-1]
    out_bnhd = torch.empty_like(q_bnhd, memory_format=torch.contiguous_format)
    inputs = (q_bnhd, k_bnhe, v_bnhe)
    arguments = (*inputs, temperature_h, out_bnhd, n, heads, d, e, *_strides(*inputs))
    shape = (d, e, n, q_bnhd.dtype, False)
    chosen = pick("xca_forward", (*map(str, shape),), config(*shape), lambda: space(*shape))
    launch(xca_forward, (b * heads,), arguments, chosen, EPS=EPS, PRECISION=dot_precision())
    return out_bnhd


def backward(
    grad_bnhd: Tensor, q_bnhd: Tensor, k_bnhe: Tensor, v_bnhe: Tensor, temperature_h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v in their dtype, contiguous, and of the temperature, [h] in fp32."""
    b, n, heads, d = q_bnhd.shape
    e = v_bnhe.shape[-1]
    inputs = (q_bnhd, k_bnhe, v_bnhe)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    dt_bh = torch.empty(b, heads, dtype=torch.float32, device=q_bnhd.device)
    arguments = (grad_bnhd, *inputs, temperature_h, dq, dk, dv, dt_bh, n, heads, d, e, *_strides(*inputs))
    shape = (d, e, n, q_bnhd.dtype, True)
    chosen = pick("xca_backward", (*map(str, shape),), config(*shape), lambda: space(*shape))
    low = q_bnhd.dtype == torch.bfloat16
    launch(
        xca_backward, (b * heads,), arguments, chosen, EPS=EPS, PRECISION=dot_precision(),
        # fp16 has no room for small gradients; tf32 holds its mantissa, and the range of fp32
        PRODUCT=tl.bfloat16 if low else tl.float32,
        PRODUCT_PRECISION="tf32" if q_bnhd.dtype == torch.float16 else dot_precision(),
    )  # fmt: skip
    return dq, dk, dv, dt_bh.sum(0)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of the samples, positions and heads of each."""
    return tuple(stride for x in tensors for stride in x.stride()[:3])
