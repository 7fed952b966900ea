"""Row-wise quantisation to 8 bits, and transposing 8-bit matrices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized_rows import QuantizedRows, largest_magnitude

TILE = 64
BLOCK = 2048
"""Values of a row that are in registers at a time."""


@triton.jit
def wider(largest, x):
    """The larger magnitude of two, element by element; not a number if one is not, so that int8 cannot hide it."""
    return tl.maximum(largest, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def row_scale(largest, LARGEST: tl.constexpr):
    """Scale of one row, from magnitudes that hold its largest; not finite if one of them is not."""
    return tl.maximum(tl.max(largest, 0), 1e-12) / LARGEST + 0 * tl.sum(largest, 0)


@triton.jit
def quantize(x, scale, IS_INTEGER: tl.constexpr):
    """One row in units of its scale, rounded if it is to be an integer."""
    x = x / scale
    return tl.floor(x + 0.5) if IS_INTEGER else x


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
    start = tl.program_id(0).to(tl.int64) * SIZE
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < SIZE
        x = tl.load(x_ptr + start + column, inside, 0.0).to(tl.float32)
        if HAS_COLUMN_SCALE:
            x *= tl.load(column_scale_ptr + column, inside, 0.0)
        largest = wider(largest, x)
    scale = row_scale(largest, LARGEST)
    tl.store(scale_ptr + tl.program_id(0), scale)
    for first in range(0, SIZE, BLOCK):  # the row is in the cache by now
        column = first + tl.arange(0, BLOCK)
        inside = column < SIZE
        x = tl.load(x_ptr + start + column, inside, 0.0).to(tl.float32)
        if HAS_COLUMN_SCALE:
            x *= tl.load(column_scale_ptr + column, inside, 0.0)
        tl.store(out_ptr + start + column, quantize(x, scale, IS_INTEGER).to(out_ptr.dtype.element_ty), inside)


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
def _transpose(x_ptr, out_ptr, num_rows, num_columns, out_stride, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    tile = tl.load(x_ptr + row[:, None] * num_columns + column[None, :], inside)
    tl.store(out_ptr + column[:, None] * out_stride + row[None, :], tl.trans(tile), tl.trans(inside))


def quantize_rows(x_SI: Tensor, dtype: torch.dtype, column_scale_I: Tensor | None = None) -> QuantizedRows:
    """Divide each row by its largest magnitude.

    Args:
        x_SI: [S, I].
        dtype: float8_e4m3fn or int8.
        column_scale_I: [I] float32, multiplied into the columns first.
    """
    x_SI = x_SI.contiguous()
    num_rows, size = x_SI.shape
    out = torch.empty(num_rows, size, dtype=dtype, device=x_SI.device)
    scale = torch.empty(num_rows, 1, dtype=torch.float32, device=x_SI.device)
    _quantize_rows[(num_rows,)](
        x_SI,
        column_scale_I,
        out,
        scale,
        SIZE=size,
        BLOCK=min(BLOCK, triton.next_power_of_2(size)),
        LARGEST=largest_magnitude(dtype),
        IS_INTEGER=not dtype.is_floating_point,
        HAS_COLUMN_SCALE=column_scale_I is not None,
        num_warps=8,
    )
    return QuantizedRows(out, scale, x_SI.dtype)


def rescale(x_SO: Tensor, row_scale_S1: Tensor, column_scale_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """diag(row_scale) x diag(column_scale) in `dtype`, of an int32 product [S, O]."""
    num_rows, size = x_SO.shape
    out = torch.empty(num_rows, size, dtype=dtype, device=x_SO.device)
    _rescale[(num_rows, triton.cdiv(size, 1024))](
        x_SO, row_scale_S1, column_scale_O, out, SIZE=size, BLOCK=1024, HAS_COLUMN_SCALE=column_scale_O is not None
    )
    return out


def transpose(*matrices: Tensor) -> Tensor:
    """Contiguous transpose of 8-bit matrices [A, C], [B, C], ... below one another: [C, A + B + ...]."""
    num_columns = matrices[0].shape[1]
    out = matrices[0].new_empty(num_columns, sum(len(x) for x in matrices))
    for x, part in zip(matrices, out.split([len(x) for x in matrices], 1), strict=True):
        grid = (triton.cdiv(len(x), TILE), triton.cdiv(num_columns, TILE))
        _transpose[grid](
            x.view(torch.uint8), part.view(torch.uint8), len(x), num_columns, out.stride(0), TILE=TILE, num_warps=4
        )
    return out
