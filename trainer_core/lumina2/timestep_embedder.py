"""The time of each sample as the vector that modulates the blocks.

Shape suffixes: B samples, P size of the time embedding.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

TIME_FREQUENCIES = 256


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of t in [0, 1] (not multiplied by 1000) through a two-layer MLP."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: P.
        """
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, timesteps_B: Tensor) -> Tensor:
        """[B, P], in the dtype of the weights."""
        half = TIME_FREQUENCIES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timesteps_B.device) / half
        angle = timesteps_B[:, None].float() * torch.exp(-math.log(10000) * exponent)
        features = torch.cat([angle.cos(), angle.sin()], -1)
        return self.mlp(features.to(cast(Tensor, self.mlp[0].weight).dtype))
