"""silu(gate) * up and its gradient, quantised row by row on the way out, so that the next product reads 8 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eight_bit import QuantizedRows, largest_magnitude
from .quantize import quantize, row_scale


@triton.jit
def _forward(
    gate_ptr,
    up_ptr,
    hidden_ptr,
    out_ptr,
    scale_ptr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    IS_INTEGER: tl.constexpr,
    KEEPS_HIDDEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = row * SIZE + column
    gate = tl.load(gate_ptr + at, inside, 0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, 0.0).to(tl.float32)
    hidden = gate * tl.sigmoid(gate) * up
    if KEEPS_HIDDEN:
        tl.store(hidden_ptr + at, hidden, inside)
    scale = row_scale(hidden, LARGEST)
    tl.store(out_ptr + at, quantize(hidden, scale, IS_INTEGER).to(out_ptr.dtype.element_ty), inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _backward(
    grad_ptr,
    gate_ptr,
    up_ptr,
    gate_scale_ptr,
    up_scale_ptr,
    out_ptr,
    scale_ptr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    IS_INTEGER: tl.constexpr,
    KEEPS_GATE: tl.constexpr,
    KEEPS_UP: tl.constexpr,
    KEEPS_HIDDEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = row * SIZE + column
    grad = tl.load(grad_ptr + at, inside, 0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, inside, 0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    if KEEPS_HIDDEN:
        tl.store(grad_ptr + at, gate * sigmoid * up, inside)
    grad_up = grad * gate * sigmoid
    grad_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    if KEEPS_GATE:
        tl.store(gate_ptr + at, grad_gate, inside)
    if KEEPS_UP:
        tl.store(up_ptr + at, grad_up, inside)
    grad_gate *= tl.load(gate_scale_ptr + column, inside, 0.0)
    grad_up *= tl.load(up_scale_ptr + column, inside, 0.0)
    scale = tl.maximum(row_scale(grad_gate, LARGEST), row_scale(grad_up, LARGEST))
    out_at = 2 * row * SIZE + column
    tl.store(out_ptr + out_at, quantize(grad_gate, scale, IS_INTEGER).to(out_ptr.dtype.element_ty), inside)
    tl.store(out_ptr + out_at + SIZE, quantize(grad_up, scale, IS_INTEGER).to(out_ptr.dtype.element_ty), inside)
    tl.store(scale_ptr + row, scale)


def forward(
    gate_SF: Tensor, up_SF: Tensor, dtype: torch.dtype, *, keeps_hidden: bool
) -> tuple[QuantizedRows, Tensor | None]:
    """silu(gate) * up quantised, and as it is if `keeps_hidden`; both inputs contiguous."""
    hidden = torch.empty_like(gate_SF) if keeps_hidden else None
    rows = _empty_rows(gate_SF, gate_SF.shape[1], dtype)
    _forward[(len(gate_SF),)](
        gate_SF,
        up_SF,
        hidden,
        rows.values_SI,
        rows.scale_S1,
        KEEPS_HIDDEN=keeps_hidden,
        **_meta(gate_SF.shape[1], dtype),
    )
    return rows, hidden


def backward(
    grad_SF: Tensor,
    gate_SF: Tensor,
    up_SF: Tensor,
    gate_scale_F: Tensor,
    up_scale_F: Tensor,
    dtype: torch.dtype,
    *,
    keeps_gate: bool,
    keeps_up: bool,
    keeps_hidden: bool,
) -> QuantizedRows:
    """Gradients of gate and up, side by side [S, 2 F], scaled by column and quantised with one scale a row.

    Args:
        grad_SF: Gradient of the hidden values; overwritten with these if `keeps_hidden`.
        gate_SF: Overwritten with its gradient if `keeps_gate`.
        up_SF: Overwritten with its gradient if `keeps_up`.
        gate_scale_F: Multiplied into the columns before quantising.
        up_scale_F: The same for `up`.
        dtype: float8_e4m3fn or int8.
        keeps_gate: Whether somebody needs it unquantised.
        keeps_up: The same for `up`.
        keeps_hidden: Whether somebody needs silu(gate) * up again.
    """
    rows = _empty_rows(grad_SF, 2 * grad_SF.shape[1], dtype)
    _backward[(len(grad_SF),)](
        grad_SF,
        gate_SF,
        up_SF,
        gate_scale_F,
        up_scale_F,
        rows.values_SI,
        rows.scale_S1,
        KEEPS_GATE=keeps_gate,
        KEEPS_UP=keeps_up,
        KEEPS_HIDDEN=keeps_hidden,
        **_meta(grad_SF.shape[1], dtype),
    )
    return rows


def _empty_rows(like_SF: Tensor, size: int, dtype: torch.dtype) -> QuantizedRows:
    num_rows, device = len(like_SF), like_SF.device
    values = torch.empty(num_rows, size, dtype=dtype, device=device)
    return QuantizedRows(values, torch.empty(num_rows, 1, dtype=torch.float32, device=device), like_SF.dtype)


def _meta(size: int, dtype: torch.dtype) -> dict[str, int | float | bool]:
    """Compile-time arguments of both kernels."""
    return {
        "SIZE": size,
        "BLOCK": triton.next_power_of_2(size),
        "LARGEST": largest_magnitude(dtype),
        "IS_INTEGER": not dtype.is_floating_point,
        "num_warps": 16 if size > 4096 else 8,
    }
