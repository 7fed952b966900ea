"""Unpacking of 4-bit matrices."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BYTES = 1024
"""Of a program: two numbers each."""


@triton.jit
def _unpack(packed_ptr, scale_ptr, levels_ptr, out_ptr, num_bytes, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BYTES
    index = start + tl.arange(0, BYTES)
    inside = index < num_bytes
    byte = tl.load(packed_ptr + index, inside, 0).to(tl.int32)
    scale = tl.load(scale_ptr + index // (BLOCK // 2), inside, 0.0)
    first = tl.load(levels_ptr + (byte >> 4)) * scale
    second = tl.load(levels_ptr + (byte & 15)) * scale
    both = start * 2 + tl.arange(0, 2 * BYTES)
    tl.store(out_ptr + both, tl.interleave(first, second).to(out_ptr.dtype.element_ty), both < 2 * num_bytes)


def unpack(packed: Tensor, scales_N1: Tensor, levels: Tensor, out_OI: Tensor, block: int) -> None:
    """Fill a matrix with what was packed, see `four_bit.unpack`."""
    num_bytes = packed.numel()
    _unpack[(triton.cdiv(num_bytes, BYTES),)](packed, scales_N1, levels, out_OI, num_bytes, BYTES, block)
