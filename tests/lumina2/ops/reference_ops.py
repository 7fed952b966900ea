"""The formulas of trainer_core/lumina2/ops/ops.py, with autograd's own gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def residual_norm(
    x_SD: Tensor,
    *,
    sample_index_S: Tensor,
    eps: float,
    branch_SD: Tensor | None = None,
    branch_weight_D: Tensor | None = None,
    gate_BD: Tensor | None = None,
    next_weight_D: Tensor | None = None,
    scale_BD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if branch_SD is not None:
        branch_SD = rms_norm(branch_SD, branch_weight_D, eps)
        x_SD = x_SD + (branch_SD if gate_BD is None else gate_BD.tanh()[sample_index_S] * branch_SD)
    if next_weight_D is None:
        return x_SD, x_SD
    h_SD = rms_norm(x_SD, next_weight_D, eps)
    return x_SD, h_SD if scale_BD is None else h_SD * (1 + scale_BD[sample_index_S])


def normalise_and_rotate(
    qkv_SX: Tensor,
    query_weight_E: Tensor,
    key_weight_E: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_kv_heads: int,
    eps: float,
    is_padding_S: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    heads = qkv_SX.unflatten(-1, (-1, len(query_weight_E)))
    query, key, value = heads.split([heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], 1)
    query = rotate(rms_norm(query, query_weight_E, eps), cos, sin)
    key = rotate(rms_norm(key, key_weight_E, eps), cos, sin)
    if is_padding_S is not None:
        query, key = F.pad(query, (0, 8)), F.pad(key, (0, 8))
        query[..., -8] = 1
        key[..., -8] = torch.where(is_padding_S, -30000.0, 0.0)[:, None]
    return query, key, value


def rotate(x_SHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x_SHE.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def swiglu(gate_SF: Tensor, up_SF: Tensor) -> Tensor:
    return F.silu(gate_SF) * up_SF
