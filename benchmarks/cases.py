"""What is measured: one optimizer step of a rank-16 LoRA on attention, on random weights and data of real size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lumina2_trainer.trainer_core.lumina2.transformer import Lumina2Config
from torch import Tensor

RANK = 16
LEARNING_RATE = 1e-4
CAPTION_LENGTHS = (120, 75, 200, 40, 33, 90, 150, 64)
"""Tokens of the first, second, ... sample of a batch."""
SIZES: dict[str, Lumina2Config] = {
    "full": Lumina2Config(),
    "demo": Lumina2Config(
        hidden_size=256,
        num_layers=6,
        num_attention_heads=4,
        num_kv_heads=2,
        cap_feat_dim=256,
        axes_dims=(24, 20, 20),
        mlp_size=1024,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement."""

    name: str
    size: str
    """Key of SIZES."""
    resolution: int
    """Side of the square picture in pixels."""
    batch_size: int
    has_recomputation: bool
    dtype: torch.dtype = torch.bfloat16


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(name="1024-b1", size="full", resolution=1024, batch_size=1, has_recomputation=False),
        Case(name="1024-b1-recompute", size="full", resolution=1024, batch_size=1, has_recomputation=True),
        Case(name="1024-b4-recompute", size="full", resolution=1024, batch_size=4, has_recomputation=True),
        Case(name="512-b2", size="full", resolution=512, batch_size=2, has_recomputation=False),
        Case(name="demo-cpu", size="demo", resolution=128, batch_size=8, has_recomputation=False, dtype=torch.float32),
    )
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Random latents and text states, the same for every trainer."""

    latents: Tensor
    """[16, resolution / 8, resolution / 8] float32 on the CPU."""
    prompt_embeds: Tensor
    """[tokens, width]."""


def make_samples(case: Case) -> list[Sample]:
    """The batch of a case."""
    generator = torch.Generator().manual_seed(1)
    side = case.resolution // 8
    width = SIZES[case.size].cap_feat_dim
    lengths = CAPTION_LENGTHS if case.size == "full" else (6, 4, 9, 3, 5, 7, 8, 4)
    return [
        Sample(
            latents=torch.randn(16, side, side, generator=generator),
            prompt_embeds=torch.randn(lengths[i % len(lengths)], width, generator=generator),
        )
        for i in range(case.batch_size)
    ]


def random_weights(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Native weights of a case, drawn on the device: matrices with standard deviation 0.02, norms around 1."""
    from lumina2_trainer.trainer_core.lumina2.transformer import Lumina2Transformer

    with torch.device("meta"):
        shapes = Lumina2Transformer(SIZES[case.size]).state_dict()
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape.shape, generator=generator, device=device)
        is_norm = name.endswith("weight") and shape.ndim == 1
        weights[name] = ((1 + 0.1 * noise) if is_norm else 0.02 * noise).to(case.dtype)
    return weights
