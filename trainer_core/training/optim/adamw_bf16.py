"""The update of AdamW with both moments in bfloat16: twice the memory of 8 bits, and no coarser than the weights.

All is computed in float32. What is stored is rounded at random, up or down so that the expectation is exact (Zamirai et
al., Revisiting BFloat16 Training, arXiv:2010.06192). To the nearest, a mean square at beta2 = 0.999 would not move at
all, for bfloat16 keeps 1 part in 256. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...seeds import derive_seed
from .adamw_8bit_numbers import Guard, UpdateNumbers

ELEMENTS_AT_ONCE = {"cpu": 2**16}
"""By type of device: these stay in a core's cache."""
OTHER_ELEMENTS_AT_ONCE = 2**22
"""Bounds the temporary memory to some 150 MB."""
CUT_OFF = 0xFFFF
"""The bits of a float32 that bfloat16 does not have."""


def bf16_moments_size(numel: int) -> int:
    """Bytes of both moments of a parameter: 4 an element."""
    return 4 * numel


@torch.no_grad()
def update_bf16(
    parameter: Tensor, grad: Tensor, buffer: Tensor, numbers: UpdateNumbers, guard: Guard | None = None
) -> None:
    """One step of AdamW on one parameter, in place.

    Args:
        parameter: float32 or bfloat16; bfloat16 is rounded at random.
        grad: Of the same shape.
        buffer: Its moments, `bf16_moments_size` bytes (uint8): the means, then the mean squares.
        numbers: Of the update.
        guard: Without it the gradient must be finite.
    """
    means_N, squares_N = buffer.view(torch.bfloat16).chunk(2)
    weights_N, grads_N = parameter.view(-1), grad.view(-1)
    is_allowed, factor = None, torch.ones((), device=grad.device)
    if guard is not None:
        is_allowed, factor = _inspect_gradient(grads_N, squares_N, numbers, guard)
    learning_rate = numbers.learning_rate * factor
    generator = torch.Generator(grad.device).manual_seed(derive_seed(numbers.seed, numbers.stream, numbers.step))
    for part in _parts(grads_N):
        grad_P = grads_N[part].float()
        mean_P = numbers.beta1 * means_N[part].float() + (1 - numbers.beta1) * grad_P
        square_P = _new_square(grad_P, squares_N[part], numbers)
        denominator_P = (square_P * numbers.square_correction).sqrt() + numbers.epsilon
        weight_P = weights_N[part].float() * (1 - learning_rate * numbers.weight_decay)
        weight_P -= learning_rate * numbers.mean_correction * mean_P / denominator_P
        words_P = torch.randint(
            -(2**31), 2**31, grad_P.shape, dtype=torch.int32, device=grad.device, generator=generator
        )
        # 16 bits each from one word of 32: bits of two draws overlap, which biases neither.
        _write(means_N[part], _round(mean_P, words_P >> 16), is_allowed)
        _write(squares_N[part], _round(square_P, words_P >> 8), is_allowed)
        rounded_P = _round(weight_P, words_P) if parameter.dtype is torch.bfloat16 else weight_P
        _write(weights_N[part], rounded_P, is_allowed)


def _inspect_gradient(
    grads_N: Tensor, squares_N: Tensor, numbers: UpdateNumbers, guard: Guard
) -> tuple[Tensor, Tensor]:
    """Keep the guard's books; whether anything may be written, and the factor of the learning rate."""
    square_norm, ratio_sum = torch.zeros(2, device=grads_N.device)
    for part in _parts(grads_N):
        grad_P = grads_N[part].float()
        square_P = _new_square(grad_P, squares_N[part], numbers) * numbers.square_correction
        square_norm += grad_P.square().sum()
        ratio_sum += (grad_P.square() / square_P.clamp(min=numbers.smallest_square)).sum()
    is_finite = square_norm.isfinite() & (guard.is_finite[guard.position] > 0)
    guard.square_norm[guard.position] = square_norm
    guard.is_finite[guard.position + 1] = is_finite
    return is_finite, (guard.max_rms / (ratio_sum / grads_N.numel()).sqrt().clamp(min=1e-30)).clamp(max=1.0)


def _new_square(grad_P: Tensor, square_P: Tensor, numbers: UpdateNumbers) -> Tensor:
    return numbers.beta2 * square_P.float() + (1 - numbers.beta2) * grad_P.square()


def _parts(x_N: Tensor) -> Iterator[slice]:
    size = ELEMENTS_AT_ONCE.get(x_N.device.type, OTHER_ELEMENTS_AT_ONCE)
    for first in range(0, x_N.numel(), size):
        yield slice(first, first + size)


def _round(x_P: Tensor, random_P: Tensor) -> Tensor:
    """Up or down to what bfloat16 can hold: the bits that are cut off are the probability of going away from zero.

    Args:
        x_P: float32.
        random_P: int32 whose lowest 16 bits are uniform.
    """
    return ((x_P.view(torch.int32) + (random_P & CUT_OFF)) & ~CUT_OFF).view(torch.float32)


def _write(target_P: Tensor, value_P: Tensor, is_allowed: Tensor | None) -> None:
    target_P.copy_(value_P if is_allowed is None else torch.where(is_allowed, value_P, target_P.float()))
