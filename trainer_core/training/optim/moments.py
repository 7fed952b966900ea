"""Adam's two moments in 8 bits an element: their format, and how a value is rounded into it.

Blocks of 256 elements share a float32 scale, their largest value (Dettmers et al., 8-bit Optimizers via Block-wise
Quantization, arXiv:2110.02861). Within a block, codes are spaced by a power, so that both directions are arithmetic
and need no table:

    mean      scale * sign(code) * (code / 127) ** 2          code -127 to 127, 4.2 decades
    square    scale * ((code + 1) / 256) ** 4                 code 0 to 255, 9.6 decades, never zero

A value between two codes goes to one of them at random, with the probability that makes the expectation exact. Rounding
to the nearest would lose every change smaller than half a code: at beta2 = 0.999 that is nearly all of them. A square
below the smallest code is rounded up to it, for dividing by too little would make a huge update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
"""Elements that share a scale."""
MEAN_CODES = 127
SQUARE_CODES = 256
SMALLEST_SCALE = 1e-30
"""Keeps the division finite; moments below it do not count beside epsilon."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Views into the one buffer that holds both moments of a parameter; N elements in K blocks."""

    mean_KB: Tensor
    """[K, 256] int8."""
    square_KB: Tensor
    """[K, 256] uint8."""
    mean_scale_K: Tensor
    square_scale_K: Tensor


def num_blocks(numel: int) -> int:
    """Blocks of a parameter; the last may be part empty."""
    return -(-numel // BLOCK)


def moments_size(numel: int) -> int:
    """Bytes of both moments of a parameter: 2.03 an element."""
    return num_blocks(numel) * (2 * BLOCK + 8)


def split_moments(buffer: Tensor) -> Moments:
    """The parts of a buffer of `moments_size` bytes (uint8); a buffer of zeros means that both moments are zero."""
    blocks = buffer.numel() // (2 * BLOCK + 8)
    codes, scales = 2 * BLOCK * blocks, buffer[2 * BLOCK * blocks :].view(torch.float32)
    return Moments(
        mean_KB=buffer[: codes // 2].view(torch.int8).view(blocks, BLOCK),
        square_KB=buffer[codes // 2 : codes].view(blocks, BLOCK),
        mean_scale_K=scales[:blocks],
        square_scale_K=scales[blocks:],
    )


def decode_mean(codes_KB: Tensor, scale_K: Tensor) -> Tensor:
    """[K, 256] float32."""
    x_KB = codes_KB.float()
    return x_KB * x_KB.abs() * (scale_K / MEAN_CODES**2)[:, None]


def decode_square(codes_KB: Tensor, scale_K: Tensor) -> Tensor:
    """[K, 256] float32."""
    x_KB = (codes_KB.float() + 1) / SQUARE_CODES
    return (x_KB * x_KB).square() * scale_K[:, None]


def encode_mean(values_KB: Tensor, random_KB: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales.

    Args:
        values_KB: [K, 256] float32.
        random_KB: [K, 256] uniform in (0, 1).
    """
    scale_K = values_KB.abs().amax(-1)
    x_KB = values_KB.abs() / scale_K.clamp(min=SMALLEST_SCALE)[:, None] * MEAN_CODES**2  # in [0, 127 ** 2]
    low_KB = x_KB.sqrt().floor().clamp(max=MEAN_CODES - 1)
    probability_KB = (x_KB - low_KB * low_KB) / (2 * low_KB + 1)
    code_KB = low_KB + (random_KB < probability_KB)
    return (code_KB * values_KB.sign()).to(torch.int8), scale_K


def encode_square(values_KB: Tensor, random_KB: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales; as `encode_mean`, but values are not negative."""
    scale_K = values_KB.amax(-1)
    x_KB = values_KB / scale_K.clamp(min=SMALLEST_SCALE)[:, None]
    low_KB = (x_KB.sqrt().sqrt() * SQUARE_CODES).floor().clamp(1, SQUARE_CODES - 1)
    below_KB = (low_KB / SQUARE_CODES).square().square()
    above_KB = ((low_KB + 1) / SQUARE_CODES).square().square()
    probability_KB = (x_KB - below_KB) / (above_KB - below_KB)
    return (low_KB - 1 + (random_KB < probability_KB)).to(torch.uint8), scale_K
