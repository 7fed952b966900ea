"""The 8-bit format of Adam's moments, and the random bits that round into it."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.training.optim.moments import (
    BLOCK,
    decode_mean,
    decode_square,
    encode_mean,
    encode_square,
    moments_size,
    split_moments,
)
from lumina2_trainer.trainer_core.training.optim.random_bits import random_words
from torch import Tensor

CPU = torch.device("cpu")


def spread_values(num_blocks: int, decades: float) -> Tensor:
    """Positive values over many decades, each block with another largest one."""
    generator = torch.Generator().manual_seed(0)
    exponents = -decades * torch.rand(num_blocks, BLOCK, generator=generator)
    return 10**exponents * torch.logspace(-6, 3, num_blocks)[:, None]


def uniform(seed: int, shape: torch.Size) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)


def test_random_words_are_philox() -> None:
    # Random123's known answers for philox4x32 with 7 rounds, key and counter 0.
    assert random_words(0, 0, 4, 0, 0, CPU).tolist() == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


def test_random_words_depend_on_everything_and_not_on_where_a_chunk_begins() -> None:
    whole = random_words(7, 0, 64, 1, 2, CPU)
    assert torch.equal(whole[16:32], random_words(7, 16, 16, 1, 2, CPU))
    others = [random_words(8, 0, 64, 1, 2, CPU), random_words(7, 0, 64, 2, 2, CPU), random_words(7, 0, 64, 1, 3, CPU)]
    assert all((whole != other).all() for other in others)
    assert whole.float().mean().item() == pytest.approx(2**31, rel=0.2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_mean_is_rounded_to_a_neighbour_and_without_bias(sign: float) -> None:
    values = sign * spread_values(5, decades=4)
    draws = []
    for seed in range(400):
        codes, scale = encode_mean(values, uniform(seed, values.shape))
        draws.append(decode_mean(codes, scale))
    drawn = torch.stack(draws)
    largest = values.abs().amax(-1, keepdim=True)
    step = 2 * (values.abs() * largest).sqrt() / 127 + largest / 127**2
    assert ((drawn - values).abs() <= 1.01 * step).all()
    error = (drawn.mean(0) - values).abs() / (step / 400**0.5)
    assert error.max() < 3, "the mean of 400 draws is six of its standard deviations off"


def test_square_is_rounded_without_bias_and_never_to_zero() -> None:
    values = spread_values(5, decades=12)
    draws = torch.stack([decode_square(*encode_square(values, uniform(seed, values.shape))) for seed in range(400)])
    largest = values.amax(-1, keepdim=True)
    smallest = (largest / 256**4).expand_as(values)
    assert (draws >= 0.999 * smallest).all()
    is_inside = values > smallest
    assert is_inside.float().mean() > 0.7
    step = 4 * (values / largest).sqrt().sqrt() ** 3 * largest / 256 * 2
    error = (draws.mean(0) - values).abs() / (step / 400**0.5)
    assert error[is_inside].max() < 3
    assert torch.allclose(draws.mean(0)[~is_inside], smallest[~is_inside])


def test_largest_value_of_a_block_is_exact_and_zeros_stay_zero() -> None:
    values = spread_values(3, decades=2)
    values[1] = 0
    for encode, decode in ((encode_mean, decode_mean), (encode_square, decode_square)):
        decoded = decode(*encode(values, uniform(0, values.shape)))
        torch.testing.assert_close(decoded.amax(-1), values.amax(-1), rtol=1e-6, atol=0)
        assert not decoded[1].any()


def test_a_buffer_of_zeros_holds_moments_of_zero() -> None:
    buffer = torch.zeros(moments_size(1000), dtype=torch.uint8)
    moments = split_moments(buffer)
    assert moments.mean_KB.shape == moments.square_KB.shape == (4, BLOCK)
    assert not decode_square(moments.square_KB, moments.square_scale_K).any()
    moments.mean_KB.fill_(1), moments.square_KB.fill_(2), moments.mean_scale_K.fill_(3), moments.square_scale_K.fill_(4)
    assert all((part == i + 1).all() for i, part in enumerate(vars(split_moments(buffer)).values()))
