"""silu(gate) * up and its gradient, quantised row by row on the way out, so that the next product reads 8 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized_rows import QuantizedRows, largest_magnitude
from .quantize import quantize, row_scale, wider

BLOCK = 1024
"""Values of a row that are in registers at a time; whole rows of 9216 do not fit there."""


@triton.jit
def _hidden(gate_ptr, up_ptr, at, inside):
    gate = tl.load(gate_ptr + at, inside, 0.0).to(tl.float32)
    return gate * tl.sigmoid(gate) * tl.load(up_ptr + at, inside, 0.0).to(tl.float32)


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
    start = tl.program_id(0).to(tl.int64) * SIZE
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK):
        column = first + tl.arange(0, BLOCK)
        hidden = _hidden(gate_ptr, up_ptr, start + column, column < SIZE)
        largest = wider(largest, hidden)
    scale = row_scale(largest, LARGEST)
    tl.store(scale_ptr + tl.program_id(0), scale)
    for first in range(0, SIZE, BLOCK):  # the row is in the cache by now
        column = first + tl.arange(0, BLOCK)
        inside = column < SIZE
        hidden = _hidden(gate_ptr, up_ptr, start + column, inside)
        if KEEPS_HIDDEN:
            tl.store(hidden_ptr + start + column, hidden, inside)
        quantized = quantize(hidden, scale, IS_INTEGER).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + start + column, quantized, inside)


@triton.jit
def _gradients(grad_ptr, gate_ptr, up_ptr, at, inside):
    """Of gate and up, and the hidden values."""
    grad = tl.load(grad_ptr + at, inside, 0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, inside, 0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    return grad * up * sigmoid * (1 + gate * (1 - sigmoid)), grad * silu, silu * up


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
    start = tl.program_id(0).to(tl.int64) * SIZE
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < SIZE
        grad_gate, grad_up, _ = _gradients(grad_ptr, gate_ptr, up_ptr, start + column, inside)
        largest = wider(largest, grad_gate * tl.load(gate_scale_ptr + column, inside, 0.0))
        largest = wider(largest, grad_up * tl.load(up_scale_ptr + column, inside, 0.0))
    scale = row_scale(largest, LARGEST)
    tl.store(scale_ptr + tl.program_id(0), scale)
    for first in range(0, SIZE, BLOCK):  # the row is in the cache by now
        column = first + tl.arange(0, BLOCK)
        inside = column < SIZE
        at = start + column
        grad_gate, grad_up, hidden = _gradients(grad_ptr, gate_ptr, up_ptr, at, inside)
        if KEEPS_HIDDEN:
            tl.store(grad_ptr + at, hidden, inside)
        if KEEPS_GATE:
            tl.store(gate_ptr + at, grad_gate, inside)
        if KEEPS_UP:
            tl.store(up_ptr + at, grad_up, inside)
        grad_gate *= tl.load(gate_scale_ptr + column, inside, 0.0)
        grad_up *= tl.load(up_scale_ptr + column, inside, 0.0)
        out_at = start + at
        tl.store(out_ptr + out_at, quantize(grad_gate, scale, IS_INTEGER).to(out_ptr.dtype.element_ty), inside)
        tl.store(out_ptr + out_at + SIZE, quantize(grad_up, scale, IS_INTEGER).to(out_ptr.dtype.element_ty), inside)


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
        "BLOCK": min(BLOCK, triton.next_power_of_2(size)),
        "LARGEST": largest_magnitude(dtype),
        "IS_INTEGER": not dtype.is_floating_point,
        "num_warps": 16,
    }
