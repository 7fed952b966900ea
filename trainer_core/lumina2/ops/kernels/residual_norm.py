"""One pass over the residual stream: add a gated, normalised branch, then normalise and scale for the next layer.

    x_out = x + tanh(gate) * rms_norm(branch) * branch_weight        (HAS_BRANCH, HAS_GATE)
    h_out = rms_norm(x_out) * next_weight * (1 + scale)              (HAS_NEXT, HAS_SCALE)

Computed in float32 in registers, a row a program; the norms are computed again in the backward pass, where the row is
read anyway. Gain on an H100 at 1024 x 1024 against eager PyTorch: see benchmarks/RESULTS.md.

Shape suffixes: S tokens, B samples, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward(
    x_ptr,
    branch_ptr,
    branch_weight_ptr,
    gate_ptr,
    next_weight_ptr,
    scale_ptr,
    sample_index_ptr,
    x_out_ptr,
    h_out_ptr,
    eps,
    gate_stride,
    scale_stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = row * SIZE + column
    x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
    if HAS_GATE or HAS_SCALE:
        sample = tl.load(sample_index_ptr + row)
    if HAS_BRANCH:
        branch = tl.load(branch_ptr + at, inside, 0.0).to(tl.float32)
        weight = tl.load(branch_weight_ptr + column, inside, 0.0).to(tl.float32)
        branch *= tl.rsqrt(tl.sum(branch * branch, 0) / SIZE + eps) * weight
        if HAS_GATE:
            gate = tl.load(gate_ptr + sample * gate_stride + column, inside, 0.0).to(tl.float32)
            branch *= 2 * tl.sigmoid(2 * gate) - 1  # tanh
        x_out = (x + branch).to(x_out_ptr.dtype.element_ty)
        tl.store(x_out_ptr + at, x_out, inside)
        x = x_out.to(tl.float32)  # as the backward pass will read it
    if HAS_NEXT:
        weight = tl.load(next_weight_ptr + column, inside, 0.0).to(tl.float32)
        h = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps) * weight
        if HAS_SCALE:
            h *= 1 + tl.load(scale_ptr + sample * scale_stride + column, inside, 0.0).to(tl.float32)
        tl.store(h_out_ptr + at, h, inside)


@triton.jit
def _backward(
    grad_x_out_ptr,
    grad_h_out_ptr,
    x_out_ptr,
    branch_ptr,
    branch_weight_ptr,
    gate_ptr,
    next_weight_ptr,
    scale_ptr,
    sample_index_ptr,
    grad_x_ptr,
    grad_branch_ptr,
    eps,
    gate_stride,
    scale_stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_GRAD_X_OUT: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = row * SIZE + column
    grad_x = tl.zeros([BLOCK], tl.float32)
    if HAS_GRAD_X_OUT:
        grad_x += tl.load(grad_x_out_ptr + at, inside, 0.0).to(tl.float32)
    if HAS_GATE or HAS_SCALE:
        sample = tl.load(sample_index_ptr + row)
    if HAS_NEXT:
        x = tl.load(x_out_ptr + at, inside, 0.0).to(tl.float32)
        grad = tl.load(grad_h_out_ptr + at, inside, 0.0).to(tl.float32)
        grad *= tl.load(next_weight_ptr + column, inside, 0.0).to(tl.float32)
        if HAS_SCALE:
            grad *= 1 + tl.load(scale_ptr + sample * scale_stride + column, inside, 0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
        x *= rstd
        grad_x += rstd * (grad - x * (tl.sum(grad * x, 0) / SIZE))
        tl.store(grad_x_ptr + at, grad_x, inside)
    if HAS_BRANCH:
        branch = tl.load(branch_ptr + at, inside, 0.0).to(tl.float32)
        grad = grad_x * tl.load(branch_weight_ptr + column, inside, 0.0).to(tl.float32)
        if HAS_GATE:
            gate = tl.load(gate_ptr + sample * gate_stride + column, inside, 0.0).to(tl.float32)
            grad *= 2 * tl.sigmoid(2 * gate) - 1
        rstd = tl.rsqrt(tl.sum(branch * branch, 0) / SIZE + eps)
        branch *= rstd
        tl.store(grad_branch_ptr + at, rstd * (grad - branch * (tl.sum(grad * branch, 0) / SIZE)), inside)


def forward(
    x_SD: Tensor,
    branch_SD: Tensor | None,
    branch_weight_D: Tensor | None,
    gate_BD: Tensor | None,
    next_weight_D: Tensor | None,
    scale_BD: Tensor | None,
    sample_index_S: Tensor,
    eps: float,
) -> tuple[Tensor | None, Tensor | None]:
    """x_out (None without a branch) and h_out (None without a next norm), both [S, D] in x's dtype."""
    num_tokens, size = x_SD.shape
    x_out = torch.empty_like(x_SD) if branch_SD is not None else None
    h_out = torch.empty_like(x_SD) if next_weight_D is not None else None
    _forward[(num_tokens,)](
        x_SD,
        branch_SD,
        branch_weight_D,
        gate_BD,
        next_weight_D,
        scale_BD,
        sample_index_S,
        x_out,
        h_out,
        eps,
        _row_stride(gate_BD),
        _row_stride(scale_BD),
        **_meta(size, branch_SD, gate_BD, next_weight_D, scale_BD),
    )
    return x_out, h_out


def backward(
    grad_x_out_SD: Tensor | None,
    grad_h_out_SD: Tensor | None,
    x_out_SD: Tensor | None,
    branch_SD: Tensor | None,
    branch_weight_D: Tensor | None,
    gate_BD: Tensor | None,
    next_weight_D: Tensor | None,
    scale_BD: Tensor | None,
    sample_index_S: Tensor,
    eps: float,
    *,
    keeps_branch: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of the branch, [S, D]; those of weights, gate and scale are in `ops.py`.

    Without a gradient of h_out, that of x is that of x_out itself. The branch's is written over the branch unless
    `keeps_branch`.
    """
    grad = grad_x_out_SD if grad_x_out_SD is not None else grad_h_out_SD
    assert grad is not None, "a backward pass without a gradient"
    num_tokens, size = grad.shape
    grad_x = grad if grad_h_out_SD is None else torch.empty_like(grad)
    grad_branch = None
    if branch_SD is not None:  # detached, so that a leaf takes it without a copy
        grad_branch = torch.empty_like(branch_SD) if keeps_branch else branch_SD.detach()
    _backward[(num_tokens,)](
        grad_x_out_SD,
        grad_h_out_SD,
        x_out_SD,
        branch_SD,
        branch_weight_D,
        gate_BD,
        next_weight_D,
        scale_BD,
        sample_index_S,
        grad_x,
        grad_branch,
        eps,
        _row_stride(gate_BD),
        _row_stride(scale_BD),
        HAS_GRAD_X_OUT=grad_x_out_SD is not None,
        **_meta(size, branch_SD, gate_BD, next_weight_D if grad_h_out_SD is not None else None, scale_BD),
    )
    return grad_x, grad_branch


def _row_stride(x_BD: Tensor | None) -> int:
    return 0 if x_BD is None else x_BD.stride(0)


def _meta(
    size: int, branch: Tensor | None, gate: Tensor | None, next_weight: Tensor | None, scale: Tensor | None
) -> dict[str, int | bool]:
    """Compile-time arguments of both kernels."""
    return {
        "SIZE": size,
        "BLOCK": triton.next_power_of_2(size),
        "HAS_BRANCH": branch is not None,
        "HAS_GATE": branch is not None and gate is not None,
        "HAS_NEXT": next_weight is not None,
        "HAS_SCALE": next_weight is not None and scale is not None,
        "num_warps": 4 if size <= 1024 else 8,
    }
