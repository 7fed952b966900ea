"""The update of AdamW with 8-bit moments in plain PyTorch: for the CPU, and for machines without Triton."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .adamw_8bit_numbers import Guard, UpdateNumbers
from .moments import BLOCK, Moments, decode_mean, decode_square, encode_mean, encode_square, num_blocks, split_moments
from .random_bits import random_words

BLOCKS_AT_ONCE = {"cpu": 256}
"""By type of device: 65536 elements stay in a core's cache, which is twice as fast."""
OTHER_BLOCKS_AT_ONCE = 16384
"""4 M elements: bounds the temporary memory to some 300 MB."""


@torch.no_grad()
def update_eager(
    parameter: Tensor, grad: Tensor, buffer: Tensor, numbers: UpdateNumbers, guard: Guard | None = None
) -> None:
    """One step of AdamW on one parameter, in place.

    Args:
        parameter: float32 or bfloat16; bfloat16 is rounded at random, without bias.
        grad: Of the same shape.
        buffer: Its moments, see `split_moments`.
        numbers: Of the update.
        guard: Without it the gradient must be finite.
    """
    moments = split_moments(buffer)
    factor = 1.0
    if guard is not None:
        found = _inspect_gradient(grad, moments, numbers, guard)
        if found is None:
            return
        factor = found
    weights_N = parameter.view(-1)
    for first, blocks in _chunks(grad):
        grad_KB = _block_slice(grad, first, blocks)
        mean_KB, square_KB = _new_moments(grad_KB, moments, first, blocks, numbers)
        words_KB = random_words(
            numbers.seed, first * BLOCK, blocks * BLOCK, numbers.stream, numbers.step, grad.device
        ).view(blocks, BLOCK)
        # 16 bits each from one word of 32: bits of two draws overlap, which biases neither.
        mean_random, square_random = (_uniform(words_KB >> shift) for shift in (16, 8))
        rows = slice(first, first + blocks)
        moments.mean_KB[rows], moments.mean_scale_K[rows] = encode_mean(mean_KB, mean_random)
        moments.square_KB[rows], moments.square_scale_K[rows] = encode_square(square_KB, square_random)
        learning_rate = numbers.learning_rate * factor
        denominator_KB = (square_KB * numbers.square_correction).sqrt() + numbers.epsilon
        weight_KB = _block_slice(weights_N, first, blocks) * (1 - learning_rate * numbers.weight_decay)
        weight_KB -= learning_rate * numbers.mean_correction * mean_KB / denominator_KB
        target = weights_N[first * BLOCK : (first + blocks) * BLOCK]
        target.copy_(_round(weight_KB, words_KB, parameter.dtype).view(-1)[: target.numel()])


def _inspect_gradient(grad: Tensor, moments: Moments, numbers: UpdateNumbers, guard: Guard) -> float | None:
    """Keep the guard's books; the factor of the learning rate, or None if nothing may be written."""
    square_norm, ratio_sum = 0.0, 0.0
    for first, blocks in _chunks(grad):
        grad_KB = _block_slice(grad, first, blocks)
        _, square_KB = _new_moments(grad_KB, moments, first, blocks, numbers)
        ratio_KB = grad_KB.square() / (square_KB * numbers.square_correction).clamp(min=numbers.smallest_square)
        square_norm += grad_KB.square().sum().item()
        ratio_sum += ratio_KB.sum().item()
    is_finite = math.isfinite(square_norm) and bool(guard.is_finite[guard.position])
    guard.square_norm[guard.position] = square_norm
    guard.is_finite[guard.position + 1] = float(is_finite)
    if not is_finite:
        return None
    return min(1.0, guard.max_rms / max(math.sqrt(ratio_sum / grad.numel()), 1e-30))


def _new_moments(
    grad_KB: Tensor, moments: Moments, first: int, blocks: int, numbers: UpdateNumbers
) -> tuple[Tensor, Tensor]:
    rows = slice(first, first + blocks)
    mean_KB = decode_mean(moments.mean_KB[rows], moments.mean_scale_K[rows])
    square_KB = decode_square(moments.square_KB[rows], moments.square_scale_K[rows])
    mean_KB = numbers.beta1 * mean_KB + (1 - numbers.beta1) * grad_KB
    return mean_KB, numbers.beta2 * square_KB + (1 - numbers.beta2) * grad_KB.square()


def _chunks(grad: Tensor) -> Iterator[tuple[int, int]]:
    """(first block, number of blocks)."""
    total, size = num_blocks(grad.numel()), BLOCKS_AT_ONCE.get(grad.device.type, OTHER_BLOCKS_AT_ONCE)
    for first in range(0, total, size):
        yield first, min(size, total - first)


def _block_slice(x: Tensor, first: int, blocks: int) -> Tensor:
    """[K, 256] float32 of some blocks, with zeros behind the last element."""
    flat = x.reshape(-1)[first * BLOCK : (first + blocks) * BLOCK].float()
    return torch.nn.functional.pad(flat, (0, blocks * BLOCK - flat.numel())).view(blocks, BLOCK)


def _uniform(words_KB: Tensor) -> Tensor:
    """(0, 1) from the lowest 16 bits."""
    return ((words_KB & 0xFFFF).float() + 0.5) / 65536


def _round(weight_KB: Tensor, words_KB: Tensor, dtype: torch.dtype) -> Tensor:
    """To bfloat16 up or down at random, so that the expectation is exact (Zamirai et al., Revisiting BFloat16
    Training, arXiv:2010.06192): the 16 bits that are cut off are the probability of rounding away from zero."""
    if dtype is not torch.bfloat16:
        return weight_KB
    bits_KB = weight_KB.view(torch.int32) + (words_KB & 0xFFFF).to(torch.int32)
    return (bits_KB & -65536).view(torch.float32)
