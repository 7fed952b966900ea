"""The VAE in strips on a GPU, at the sizes of the Flux VAE: the whole result, in the memory that was planned."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.encoders.vae import decode_latents
from lumina2_trainer.trainer_core.lumina2.encoders.vae_memory import SMALLEST, estimate_bytes
from lumina2_trainer.trainer_core.lumina2.encoders.vae_strips import StripPlan, run_in_strips
from torch import Tensor

from ..lumina2.tiny_files import tiny_vae
from ..lumina2.tiny_models import relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")

GPU = torch.device("cuda")
GIB = 2**30
SIDE = 1024
INPUTS = {"encoder": (1, 3, SIDE, SIDE), "decoder": (1, 16, SIDE // 8, SIDE // 8)}
PLANS = {
    "on_gpu": StripPlan(strip_bytes=32 * 2**20, kept_bytes=math.inf),
    "part_in_cpu_memory": StripPlan(strip_bytes=16 * 2**20, kept_bytes=2**28),
    "in_cpu_memory": StripPlan(strip_bytes=16 * 2**20, kept_bytes=0),
    "smallest": SMALLEST,
}


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_vae((128, 256, 512, 512), 2).to(GPU).requires_grad_(False)


@pytest.fixture
def little_memory(vae: Any) -> Iterator[None]:
    """1 GiB beside the VAE, without a sign of it in what the driver calls free."""
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + GIB) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(share)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def draw(direction: str) -> Tensor:
    return torch.randn(INPUTS[direction], generator=torch.Generator().manual_seed(0)).to(GPU)


@torch.no_grad()
def run(part: Any, inputs: Tensor, plan: StripPlan | None) -> tuple[Tensor, int]:
    """The result, and the most bytes that were taken for it."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = part(inputs) if plan is None else run_in_strips(part, inputs, plan)
    return result, torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("direction", INPUTS)
def test_strips_equal_the_whole(direction: str, plan: str, vae: Any) -> None:
    part, inputs = getattr(vae, direction), draw(direction)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 rounds by more than strips differ
        expected, _ = run(part, inputs, None)
        actual, _ = run(part, inputs, PLANS[plan])
    assert relative_error(actual, expected) <= 1e-5
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()  # at no seam either


@pytest.mark.parametrize("plan", [None, *PLANS])
@pytest.mark.parametrize("direction", INPUTS)
def test_no_plan_takes_more_memory_than_estimated(direction: str, plan: str | None, vae: Any) -> None:
    part, inputs = getattr(vae, direction), draw(direction)
    chosen = None if plan is None else PLANS[plan]
    _, peak = run(part, inputs, chosen)
    estimate = estimate_bytes(part, *inputs.shape[2:], chosen)
    assert peak <= estimate, f"{peak / GIB:.3f} GiB where {estimate / GIB:.3f} are expected"


def test_a_picture_of_1024_is_decoded_in_0_3_gib(vae: Any) -> None:
    _, peak = run(vae.decoder, draw("decoder"), PLANS["in_cpu_memory"])
    assert peak <= 0.3 * GIB, f"{peak / GIB:.3f} GiB"


@pytest.mark.usefixtures("little_memory")
def test_running_out_of_memory_is_survived(vae: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pixels = decode_latents(vae, draw("decoder"))
    assert pixels.shape == (1, 3, SIDE, SIDE)
    assert caplog.text.count("ran out of memory") == 2  # whole, and with everything kept on the GPU
