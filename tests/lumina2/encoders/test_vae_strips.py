"""The VAE in strips of rows, against the whole picture at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.encoders.vae_memory import WORKSPACE_BYTES, estimate_bytes
from lumina2_trainer.trainer_core.lumina2.encoders.vae_strips import StripPlan, run_in_strips
from torch import Tensor

from ...live_bytes import LiveBytes
from ..tiny_files import tiny_vae
from ..tiny_models import relative_error

KIBIBYTE = 2**10


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def run_whole(part: Any, inputs: Tensor) -> Tensor:
    return part(inputs)


@pytest.mark.parametrize("strip_bytes", [1, 50 * KIBIBYTE, 300 * KIBIBYTE, 2**30])
@pytest.mark.parametrize(("direction", "shape"), [("decoder", (1, 16, 5, 7)), ("encoder", (1, 3, 40, 56))])
def test_strips_of_any_height_equal_the_whole(direction: str, shape: tuple[int, ...], strip_bytes: int) -> None:
    part = getattr(tiny_vae(), direction)
    inputs = draw(*shape)
    expected = run_whole(part, inputs)
    actual = run_in_strips(part, inputs, StripPlan(strip_bytes=strip_bytes, kept_bytes=math.inf))
    assert relative_error(actual, expected) <= 1e-5
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()  # at no seam either


@pytest.mark.parametrize("strip_bytes", [1, 300 * KIBIBYTE])
def test_activations_in_several_pieces_equal_the_whole(strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, latents = tiny_vae(layers_per_block=2).decoder, draw(1, 16, 9, 3)
    monkeypatch.setattr("lumina2_trainer.trainer_core.lumina2.encoders.vae_strips.PIECE_BYTES", 70 * KIBIBYTE)
    actual = run_in_strips(decoder, latents, StripPlan(strip_bytes=strip_bytes, kept_bytes=0))
    assert relative_error(actual, run_whole(decoder, latents)) <= 1e-5


@pytest.mark.parametrize(("direction", "shape"), [("decoder", (1, 16, 5, 7)), ("encoder", (1, 3, 40, 56))])
def test_statistics_are_exact_beside_large_means(direction: str, shape: tuple[int, ...]) -> None:
    part = getattr(tiny_vae(), direction)
    inputs = draw(*shape)
    with torch.no_grad():
        part.conv_in.bias.add_(300)
        expected = run_whole(part.double(), inputs.double())
    error_of_whole = relative_error(run_whole(part.float(), inputs), expected)
    error = relative_error(run_in_strips(part, inputs, StripPlan(strip_bytes=1, kept_bytes=0)), expected)
    assert error <= 2 * error_of_whole


def test_a_picture_in_bfloat16_is_as_close_as_whole() -> None:
    decoder, latents = tiny_vae().decoder, draw(1, 16, 5, 7)
    expected = run_whole(decoder, latents)
    decoder.bfloat16()
    actual = run_in_strips(decoder, latents.bfloat16(), StripPlan(strip_bytes=50 * KIBIBYTE, kept_bytes=0))
    assert actual.dtype == torch.bfloat16
    error_of_whole = relative_error(run_whole(decoder, latents.bfloat16()), expected)
    assert relative_error(actual, expected) <= 2 * error_of_whole


@pytest.mark.parametrize(("direction", "shape"), [("decoder", (1, 16, 24, 16)), ("encoder", (1, 3, 192, 128))])
def test_strips_take_no_more_memory_than_estimated(direction: str, shape: tuple[int, ...]) -> None:
    part = getattr(tiny_vae(), direction)
    plan = StripPlan(strip_bytes=256 * KIBIBYTE, kept_bytes=math.inf)
    inputs = draw(*shape)
    with LiveBytes() as whole:
        run_whole(part, inputs)
    with LiveBytes() as in_strips:
        run_in_strips(part, inputs, plan)
    estimate = estimate_bytes(part, *shape[2:], plan) - WORKSPACE_BYTES  # which is no tensor
    assert 0.6 * estimate <= in_strips.peak <= estimate
    assert in_strips.peak <= 0.7 * whole.peak
    assert whole.peak <= estimate_bytes(part, *shape[2:], None)
