"""Row-wise quantisation to 8 bits, and transposing 8-bit matrices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_FP8 = 448.0
"""Largest float8_e4m3fn."""
MAX_INT8 = 127.0
TILE = 64


@triton.jit
def _quantize_rows(
    x_ptr,
    column_scale_ptr,
    out_ptr,
    scale_ptr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    IS_INTEGER: tl.constexpr,
    HAS_COLUMN_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    x = tl.load(x_ptr + row * SIZE + column, inside, 0.0).to(tl.float32)
    if HAS_COLUMN_SCALE:
        x *= tl.load(column_scale_ptr + column, inside, 0.0)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / LARGEST
    x = x / scale
    if IS_INTEGER:
        x = tl.floor(x + 0.5)
    tl.store(out_ptr + row * SIZE + column, x.to(out_ptr.dtype.element_ty), inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _rescale(
    x_ptr,
    row_scale_ptr,
    column_scale_ptr,
    out_ptr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_COLUMN_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    x = tl.load(x_ptr + row * SIZE + column, inside, 0).to(tl.float32) * tl.load(row_scale_ptr + row)
    if HAS_COLUMN_SCALE:
        x *= tl.load(column_scale_ptr + column, inside, 0.0)
    tl.store(out_ptr + row * SIZE + column, x, inside)


@triton.jit
def _transpose(x_ptr, out_ptr, num_rows, num_columns, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    tile = tl.load(x_ptr + row[:, None] * num_columns + column[None, :], inside)
    tl.store(out_ptr + column[:, None] * num_rows + row[None, :], tl.trans(tile), tl.trans(inside))


def quantize_rows(x_SI: Tensor, dtype: torch.dtype, column_scale_I: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Divide each row by its largest magnitude.

    Args:
        x_SI: [S, I].
        dtype: float8_e4m3fn or int8.
        column_scale_I: [I] float32, multiplied into the columns first.

    Returns:
        [S, I] in dtype, and the [S, 1] float32 scale of each row.
    """
    num_rows, size = x_SI.shape
    out = torch.empty(num_rows, size, dtype=dtype, device=x_SI.device)
    scale = torch.empty(num_rows, 1, dtype=torch.float32, device=x_SI.device)
    _quantize_rows[(num_rows,)](
        x_SI,
        column_scale_I,
        out,
        scale,
        SIZE=size,
        BLOCK=triton.next_power_of_2(size),
        LARGEST=MAX_INT8 if dtype == torch.int8 else MAX_FP8,
        IS_INTEGER=dtype == torch.int8,
        HAS_COLUMN_SCALE=column_scale_I is not None,
        num_warps=8,
    )
    return out, scale


def rescale(x_SO: Tensor, row_scale_S1: Tensor, column_scale_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """diag(row_scale) x diag(column_scale) in `dtype`, of an int32 product [S, O]."""
    num_rows, size = x_SO.shape
    out = torch.empty(num_rows, size, dtype=dtype, device=x_SO.device)
    _rescale[(num_rows, triton.cdiv(size, 1024))](
        x_SO, row_scale_S1, column_scale_O, out, SIZE=size, BLOCK=1024, HAS_COLUMN_SCALE=column_scale_O is not None
    )
    return out


def transpose(x: Tensor) -> Tensor:
    """[A, B] -> contiguous [B, A], of an 8-bit matrix."""
    rows, columns = x.shape
    out = torch.empty(columns, rows, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    _transpose[grid](x.view(torch.uint8), out.view(torch.uint8), rows, columns, TILE=TILE, num_warps=4)
    return out
