"""Whole or in strips: what the VAE does with the memory that is free."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.encoders import vae_memory
from lumina2_trainer.trainer_core.lumina2.encoders.vae import decode_latents, encode_pixels
from lumina2_trainer.trainer_core.lumina2.encoders.vae_memory import (
    MIN_STRIP_BYTES,
    SMALLEST,
    choose_plan,
    estimate_bytes,
)
from lumina2_trainer.trainer_core.lumina2.encoders.vae_strips import StripPlan
from torch import Tensor

from ..tiny_files import tiny_vae
from ..tiny_models import relative_error

GIB = 2**30
PIXELS = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
LATENTS = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(0))
CALLS: dict[str, tuple[Any, Tensor]] = {"encode": (encode_pixels, PIXELS), "decode": (decode_latents, LATENTS)}


def real_part(direction: str) -> Any:
    """The encoder or decoder of the Flux VAE, without weights."""
    with torch.device("meta"):
        return getattr(tiny_vae((128, 256, 512, 512), 2), direction)


def input_side(direction: str, side: int) -> int:
    return side if direction == "encoder" else side // 8


@pytest.mark.parametrize("direction", ["decoder", "encoder"])
@pytest.mark.parametrize("side", [1024, 2048])
def test_less_free_memory_chooses_plans_that_take_less(direction: str, side: int) -> None:
    part, height = real_part(direction), input_side(direction, side)
    plans = []
    for free in (32, 16, 8, 6, 4, 3, 2, 1.5, 1, 0.75, 0.6):
        plans.append(choose_plan(part, height, height, free * GIB))
        assert estimate_bytes(part, height, height, plans[-1]) <= 0.9 * free * GIB
    assert plans[0] is None
    in_strips = [plan for plan in plans if plan is not None]
    assert plans == [None] * (len(plans) - len(in_strips)) + in_strips
    kept = [plan.kept_bytes for plan in in_strips]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) >= 3


def test_next_to_no_free_memory_still_chooses_strips() -> None:
    assert choose_plan(real_part("decoder"), 256, 256, 0) == StripPlan(strip_bytes=MIN_STRIP_BYTES, kept_bytes=0)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("quant_convs", [False, True])
def test_little_free_memory_changes_no_result(call: str, quant_convs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, (compute, inputs) = tiny_vae(quant_convs=quant_convs), CALLS[call]
    expected = compute(vae, inputs)
    forbid_whole(vae, monkeypatch, AssertionError("nothing shall be computed whole"))
    monkeypatch.setattr(vae_memory, "free_bytes", lambda device: 10 * 2**10)
    assert relative_error(compute(vae, inputs), expected) <= 1e-5


@pytest.mark.parametrize("call", CALLS)
def test_a_batch_that_does_not_fit_is_computed_picture_by_picture(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, (compute, inputs) = tiny_vae(), CALLS[call]
    one_by_one = torch.cat([compute(vae, one) for one in inputs.split(1)])
    part = vae.encoder if call == "encode" else vae.decoder
    one_picture = estimate_bytes(part, *inputs.shape[2:], None)
    monkeypatch.setattr(vae_memory, "free_bytes", lambda device: 1.5 * one_picture)
    assert torch.equal(compute(vae, inputs), one_by_one)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_goes_on_in_strips(
    call: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vae, (compute, inputs) = tiny_vae(), CALLS[call]
    expected = compute(vae, inputs)
    forbid_whole(vae, monkeypatch, error)
    with caplog.at_level(logging.WARNING):
        assert relative_error(compute(vae, inputs), expected) <= 1e-5
    assert "ran out of memory" in caplog.text


def test_running_out_in_strips_goes_on_in_the_smallest_and_then_ends() -> None:
    decoder, plans = tiny_vae().decoder, []

    def run_out(*arguments: Any) -> Tensor:
        plans.append(arguments[1] if len(arguments) > 1 else None)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        vae_memory.compute_in_free_memory(decoder, LATENTS[:1], whole=run_out, in_strips=run_out)
    assert len(plans) == 3
    assert plans[0] is None
    assert plans[2] == SMALLEST != plans[1]


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_vae()
    forbid_whole(vae, monkeypatch, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        decode_latents(vae, LATENTS)


def forbid_whole(vae: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(vae, "encode", fail)
    monkeypatch.setattr(vae, "decode", fail)
