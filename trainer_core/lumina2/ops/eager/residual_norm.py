"""Add a gated, normalised branch to the residual stream, then normalise and scale for the next layer.

Shape suffixes: S tokens, B samples, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .norm import norm_gradient, rstd


def forward(
    x_SD: Tensor,
    branch_SD: Tensor | None,
    branch_weight_D: Tensor | None,
    gate_BD: Tensor | None,
    next_weight_D: Tensor | None,
    scale_BD: Tensor | None,
    sample_index_S: Tensor,
    eps: float,
) -> tuple[Tensor | None, Tensor | None]:
    """x_out (None without a branch) and h_out (None without a next norm), both [S, D] in x's dtype."""
    x_out, h_out = None, None
    if branch_SD is not None:
        factor = _branch_factor(branch_weight_D, gate_BD, sample_index_S)
        x_out = torch.addcmul(x_SD.float(), branch_SD * rstd(branch_SD, eps), factor).to(x_SD.dtype)
    if next_weight_D is not None:
        x = x_SD if x_out is None else x_out
        h_out = (x * rstd(x, eps)).mul_(_next_factor(next_weight_D, scale_BD, sample_index_S)).to(x_SD.dtype)
    return x_out, h_out


def backward(
    grad_x_out_SD: Tensor | None,
    grad_h_out_SD: Tensor | None,
    x_out_SD: Tensor | None,
    branch_SD: Tensor | None,
    branch_weight_D: Tensor | None,
    gate_BD: Tensor | None,
    next_weight_D: Tensor | None,
    scale_BD: Tensor | None,
    sample_index_S: Tensor,
    eps: float,
    *,
    keeps_branch: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of the branch, [S, D]; `keeps_branch` is for kernels that write over it."""
    grad_x, dtype = grad_x_out_SD, (grad_x_out_SD if grad_h_out_SD is None else grad_h_out_SD).dtype  # type: ignore[union-attr]
    if grad_h_out_SD is not None:
        assert x_out_SD is not None and next_weight_D is not None, "a gradient of a norm that was not computed"
        grad_normed = grad_h_out_SD * _next_factor(next_weight_D, scale_BD, sample_index_S)
        grad_x = norm_gradient(grad_normed, x_out_SD.float(), eps)
        if grad_x_out_SD is not None:
            grad_x += grad_x_out_SD
    assert grad_x is not None, "a backward pass without a gradient"
    grad_branch = None
    if branch_SD is not None:
        grad_normed = grad_x * _branch_factor(branch_weight_D, gate_BD, sample_index_S)
        grad_branch = norm_gradient(grad_normed, branch_SD.float(), eps).to(dtype)
    return grad_x.to(dtype), grad_branch


def _branch_factor(weight_D: Tensor | None, gate_BD: Tensor | None, sample_index_S: Tensor) -> Tensor:
    """weight * tanh(gate) of each token, float32: [S, D], or [D] or [1, D] where all tokens share it."""
    assert weight_D is not None, "a branch without the weight of its norm"
    weight_D = weight_D.float()
    return weight_D if gate_BD is None else _per_token(weight_D * gate_BD.float().tanh(), sample_index_S)


def _next_factor(weight_D: Tensor, scale_BD: Tensor | None, sample_index_S: Tensor) -> Tensor:
    """weight * (1 + scale) of each token, float32: [S, D], or [D] or [1, D] where all tokens share it."""
    weight_D = weight_D.float()
    return weight_D if scale_BD is None else _per_token(weight_D * (1 + scale_BD.float()), sample_index_S)


def _per_token(x_BD: Tensor, sample_index_S: Tensor) -> Tensor:
    return x_BD if len(x_BD) == 1 else x_BD.index_select(0, sample_index_S)
