"""A linear layer that computes in float32 with weights stored in bfloat16."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class UpcastLinear(nn.Linear):
    """Computes in its input's precision, whatever its weight is stored as."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
