"""The update of AdamW with 8-bit moments as two Triton kernels; the same steps as `adamw_8bit_eager.py`.

The first reads the gradient and the squares for the guard, the second updates in one pass: together 13 bytes of memory
traffic an element. Shape suffixes: K blocks of 256 elements.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import moments as codes
from . import random_bits
from .adamw_8bit_numbers import Guard, UpdateNumbers

BLOCK = tl.constexpr(codes.BLOCK)
MEAN_CODES = tl.constexpr(float(codes.MEAN_CODES))
SQUARE_CODES = tl.constexpr(float(codes.SQUARE_CODES))
SMALLEST_SCALE = tl.constexpr(codes.SMALLEST_SCALE)
NUM_ROUNDS = tl.constexpr(random_bits.NUM_ROUNDS)
ROWS = tl.constexpr(8)
"""Blocks of 256 elements that a program works on at once."""
MAX_PROGRAMS = tl.constexpr(1024)
"""Fixed, so that sums are taken in the same order on every card."""


@triton.jit
def _new_square(grad, square_ptr, scale_ptr, at_KB, row_K, is_row, beta2, beta2_rest):
    code_KB = (tl.load(square_ptr + at_KB, mask=is_row[:, None], other=0).to(tl.float32) + 1.0) / SQUARE_CODES
    code_KB *= code_KB
    scale_K = tl.load(scale_ptr + row_K, mask=is_row, other=0.0)
    return beta2 * (code_KB * code_KB * scale_K[:, None]) + beta2_rest * (grad * grad)


@triton.jit(do_not_specialize=["num_rows"])
def _inspect(
    grad_ptr,
    moments_ptr,
    sums_ptr,
    numel,
    num_rows,
    beta2,
    beta2_rest,
    square_correction,
    smallest_square,
):
    """Each program's share of sum(g ** 2), and of sum(g ** 2 / v)."""
    square_ptr = moments_ptr + num_rows * BLOCK
    scale_ptr = (moments_ptr + num_rows * (2 * BLOCK + 4)).to(tl.pointer_type(tl.float32))
    norm_KB = tl.zeros([ROWS, BLOCK], tl.float32)
    ratio_KB = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        row_K = tile * ROWS + tl.arange(0, ROWS)
        at_KB = row_K[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        grad_KB = tl.load(grad_ptr + at_KB, mask=at_KB < numel, other=0.0).to(tl.float32)
        square_KB = _new_square(grad_KB, square_ptr, scale_ptr, at_KB, row_K, row_K < num_rows, beta2, beta2_rest)
        norm_KB += grad_KB * grad_KB
        ratio_KB += grad_KB * grad_KB / tl.maximum(square_KB * square_correction, smallest_square)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(norm_KB))
    tl.store(sums_ptr + MAX_PROGRAMS + tl.program_id(0), tl.sum(ratio_KB))


@triton.jit
def _learning_rate_factor(sums_ptr, is_finite_ptr, square_norm_ptr, num_sums, numel, max_rms):
    """The factor, and whether anything may be written; the first program keeps the guard's books."""
    program = tl.arange(0, MAX_PROGRAMS)
    norm = tl.sum(tl.load(sums_ptr + program, mask=program < num_sums, other=0.0))
    ratio = tl.sum(tl.load(sums_ptr + MAX_PROGRAMS + program, mask=program < num_sums, other=0.0))
    is_finite = (tl.load(is_finite_ptr) > 0.0) & (norm < float("inf"))  # not a number is not less either
    if tl.program_id(0) == 0:
        tl.store(square_norm_ptr, norm)
        tl.store(is_finite_ptr + 1, is_finite.to(tl.float32))
    rms = tl.sqrt(ratio / numel)
    return tl.minimum(1.0, max_rms / tl.maximum(rms, 1e-30)), is_finite


@triton.jit
def _random_words(seed, row_K, stream, step):
    """32 bits an element; a draw of Philox serves four elements."""
    quad = (row_K[:, None] * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :]).to(tl.uint32)
    stream_words = tl.zeros_like(quad) + stream.to(tl.uint32)
    step_words = tl.zeros_like(quad) + step.to(tl.uint32)
    a, b, c, d = tl.philox(seed, quad, stream_words, step_words, tl.zeros_like(quad), NUM_ROUNDS)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [ROWS, BLOCK])  # [.., 64] x 4 -> [.., 64, 2, 2]


@triton.jit
def _uniform(words, SHIFT: tl.constexpr):
    return (((words >> SHIFT) & 0xFFFF).to(tl.int32).to(tl.float32) + 0.5) / 65536.0


@triton.jit(do_not_specialize=["num_rows", "num_sums", "position", "seed", "sequence", "step"])
def _update(
    weight_ptr,
    grad_ptr,
    moments_ptr,
    sums_ptr,
    is_finite_ptr,
    square_norm_ptr,
    numel,
    num_rows,
    num_sums,
    position,
    max_rms,
    learning_rate,
    weight_decay,
    beta1,
    beta1_rest,
    beta2,
    beta2_rest,
    mean_correction,
    square_correction,
    epsilon,
    seed,
    sequence,
    step,
    HAS_GUARD: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
):
    mean_ptr = moments_ptr.to(tl.pointer_type(tl.int8))
    square_ptr = moments_ptr + num_rows * BLOCK
    mean_scale_ptr = (moments_ptr + num_rows * (2 * BLOCK)).to(tl.pointer_type(tl.float32))
    square_scale_ptr = mean_scale_ptr + num_rows
    num_tiles = tl.cdiv(num_rows, ROWS)
    if HAS_GUARD:
        factor, is_open = _learning_rate_factor(
            sums_ptr, is_finite_ptr + position, square_norm_ptr + position, num_sums, numel, max_rms
        )
        learning_rate *= factor
        num_tiles = tl.where(is_open, num_tiles, 0)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row_K = tile * ROWS + tl.arange(0, ROWS)
        at_KB = row_K[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        is_row = row_K < num_rows
        is_element = at_KB < numel
        grad_KB = tl.load(grad_ptr + at_KB, mask=is_element, other=0.0).to(tl.float32)
        words_KB = _random_words(seed, row_K, sequence, step)

        code_KB = tl.load(mean_ptr + at_KB, mask=is_row[:, None], other=0).to(tl.float32)
        scale_K = tl.load(mean_scale_ptr + row_K, mask=is_row, other=0.0) / (MEAN_CODES * MEAN_CODES)
        mean_KB = beta1 * (code_KB * tl.abs(code_KB) * scale_K[:, None]) + beta1_rest * grad_KB
        square_KB = _new_square(grad_KB, square_ptr, square_scale_ptr, at_KB, row_K, is_row, beta2, beta2_rest)

        scale_K = tl.max(tl.abs(mean_KB), 1)
        x_KB = tl.abs(mean_KB) / tl.maximum(scale_K, SMALLEST_SCALE)[:, None] * (MEAN_CODES * MEAN_CODES)
        low_KB = tl.minimum(tl.floor(tl.sqrt(x_KB)), MEAN_CODES - 1.0)
        chance_KB = (x_KB - low_KB * low_KB) / (2.0 * low_KB + 1.0)
        low_KB += (_uniform(words_KB, 16) < chance_KB).to(tl.float32)
        code_KB = tl.where(mean_KB < 0, -low_KB, low_KB)
        tl.store(mean_ptr + at_KB, code_KB.to(tl.int8), mask=is_row[:, None])
        tl.store(mean_scale_ptr + row_K, scale_K, mask=is_row)

        scale_K = tl.max(square_KB, 1)
        x_KB = square_KB / tl.maximum(scale_K, SMALLEST_SCALE)[:, None]
        low_KB = tl.floor(tl.sqrt(tl.sqrt(x_KB)) * SQUARE_CODES)
        low_KB = tl.minimum(tl.maximum(low_KB, 1.0), SQUARE_CODES - 1.0)
        below_KB = low_KB / SQUARE_CODES
        below_KB *= below_KB
        below_KB *= below_KB
        above_KB = (low_KB + 1.0) / SQUARE_CODES
        above_KB *= above_KB
        above_KB *= above_KB
        chance_KB = (x_KB - below_KB) / (above_KB - below_KB)
        code_KB = low_KB - 1.0 + (_uniform(words_KB, 8) < chance_KB).to(tl.float32)
        tl.store(square_ptr + at_KB, code_KB.to(tl.uint8), mask=is_row[:, None])
        tl.store(square_scale_ptr + row_K, scale_K, mask=is_row)

        weight_KB = tl.load(weight_ptr + at_KB, mask=is_element, other=0.0).to(tl.float32)
        denominator_KB = tl.sqrt(square_KB * square_correction) + epsilon
        weight_KB = weight_KB * (1.0 - learning_rate * weight_decay)
        weight_KB -= learning_rate * mean_correction * mean_KB / denominator_KB
        if IS_ROUNDED:
            bits_KB = weight_KB.to(tl.int32, bitcast=True) + (words_KB & 0xFFFF).to(tl.int32)
            weight_KB = (bits_KB & -65536).to(tl.float32, bitcast=True)
        tl.store(weight_ptr + at_KB, weight_KB.to(weight_ptr.dtype.element_ty), mask=is_element)


@torch.no_grad()
def update_triton(
    parameter: Tensor, grad: Tensor, buffer: Tensor, numbers: UpdateNumbers, guard: Guard | None = None
) -> None:
    """One step of AdamW on one parameter, in place; see `update_eager`."""
    numel, num_rows = parameter.numel(), codes.num_blocks(parameter.numel())
    assert num_rows * BLOCK.value < 2**31, "positions are 32-bit"
    num_programs = min(MAX_PROGRAMS.value, triton.cdiv(num_rows, ROWS.value))
    rest = {"beta2": numbers.beta2, "beta2_rest": 1 - numbers.beta2, "square_correction": numbers.square_correction}
    sums, is_finite, square_norm = buffer, buffer, buffer  # not looked at without a guard
    if guard is not None:
        sums = torch.empty(2 * MAX_PROGRAMS.value, device=grad.device)
        is_finite, square_norm = guard.is_finite, guard.square_norm
        _inspect[(num_programs,)](grad, buffer, sums, numel, num_rows, smallest_square=numbers.smallest_square, **rest)
    _update[(num_programs,)](
        parameter,
        grad,
        buffer,
        sums,
        is_finite,
        square_norm,
        numel,
        num_rows,
        num_programs,
        position=guard.position if guard is not None else 0,
        max_rms=guard.max_rms if guard is not None else 1.0,
        learning_rate=numbers.learning_rate,
        weight_decay=numbers.weight_decay,
        beta1=numbers.beta1,
        beta1_rest=1 - numbers.beta1,
        mean_correction=numbers.mean_correction,
        epsilon=numbers.epsilon,
        seed=numbers.seed,
        sequence=numbers.stream,
        step=numbers.step,
        HAS_GUARD=guard is not None,
        IS_ROUNDED=parameter.dtype is torch.bfloat16,
        **rest,
    )
