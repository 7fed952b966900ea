"""silu(gate) * up and its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of the same shape."""
    return F.silu(gate).mul_(up)


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; the inputs stay as they are."""
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
