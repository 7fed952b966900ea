"""What is measured: one optimizer step on random weights and data, by size, shape and what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config

RANK = 16
LEARNING_RATE = 1e-4
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
CAPTION_LENGTHS: dict[str, tuple[int, ...]] = {
    "full": (120, 75, 200, 40, 33, 90, 150, 64),
    "demo": (6, 4, 9, 3, 5, 7, 8, 4),
}
"""Tokens of the first, second, ... sample of a batch, by size."""


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
    trained: Literal["lora", "full"] = "lora"
    """A LoRA of rank 16 on attention, or every weight."""
    dtype: torch.dtype = torch.bfloat16


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(name="1024-b1", size="full", resolution=1024, batch_size=1, has_recomputation=False),
        Case(name="1024-b1-recompute", size="full", resolution=1024, batch_size=1, has_recomputation=True),
        Case(name="1024-b4-recompute", size="full", resolution=1024, batch_size=4, has_recomputation=True),
        Case(name="512-b2", size="full", resolution=512, batch_size=2, has_recomputation=False),
        Case(name="full-1024-b1", size="full", resolution=1024, batch_size=1, has_recomputation=True, trained="full"),
        Case(name="demo-cpu", size="demo", resolution=128, batch_size=8, has_recomputation=False, dtype=torch.float32),
        Case(
            name="full-demo-cpu",
            size="demo",
            resolution=128,
            batch_size=8,
            has_recomputation=True,
            trained="full",
            dtype=torch.float32,
        ),
    )
}
