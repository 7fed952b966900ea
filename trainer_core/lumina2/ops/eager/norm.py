"""Root-mean-square norm over the last dimension, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def rstd(x: Tensor, eps: float) -> Tensor:
    """One over the root mean square of the last dimension, [..., 1] float32."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(x.shape[-1])
    return mean_square.add_(eps).rsqrt_()


def norm_gradient(grad: Tensor, x: Tensor, eps: float) -> Tensor:
    """Gradient of x, given that of x * rstd(x); both [..., E] float32."""
    x_rstd = rstd(x, eps)
    mean_product = (grad * x).sum(-1, keepdim=True).mul_(x_rstd.pow(3)).div_(x.shape[-1])
    return (grad * x_rstd).addcmul_(x, mean_product, value=-1)
