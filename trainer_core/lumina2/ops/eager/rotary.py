"""Normalise the heads of queries and keys and rotate them, as complex numbers.

Shape suffixes: S tokens, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import PADDING_FEATURES, PADDING_LOGIT
from .norm import norm_gradient, rstd


def forward(
    qkv_SX: Tensor,
    query_weight_E: Tensor,
    key_weight_E: Tensor,
    cos: Tensor,
    sin: Tensor,
    is_padding_S: Tensor | None,
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Normalised and rotated queries [S, H, E] and keys [S, K, E], with features for padding if there is any."""
    rotation = torch.complex(cos, sin)
    heads = qkv_SX.unflatten(-1, (-1, len(query_weight_E)))  # [S, X] -> [S, H + 2 K, E]
    query, key = (
        rotate((x * rstd(x, eps)).mul_(weight_E), rotation).to(x.dtype)
        for x, weight_E in (
            (heads[:, : -2 * num_kv_heads], query_weight_E),
            (heads[:, -2 * num_kv_heads : -num_kv_heads], key_weight_E),
        )
    )
    if is_padding_S is None:
        return query, key
    feature_S = torch.where(is_padding_S, PADDING_LOGIT, 0.0).to(key.dtype)
    return _append_feature(query, torch.ones_like(feature_S)), _append_feature(key, feature_S)


def backward(
    grad_query_SHE: Tensor,
    grad_key_SKE: Tensor,
    grad_value_SKE: Tensor,
    qkv_SX: Tensor,
    query_weight_E: Tensor,
    key_weight_E: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> Tensor:
    """Gradient of the fused qkv product, [S, (H + 2 K) E]."""
    head, num_heads, num_kv_heads = len(query_weight_E), grad_query_SHE.shape[1], grad_key_SKE.shape[1]
    rotation = torch.complex(cos, -sin)
    grad_qkv = torch.empty_like(qkv_SX)
    sizes = [num_heads, num_kv_heads, num_kv_heads]
    query, key, _ = qkv_SX.unflatten(-1, (-1, head)).split(sizes, 1)
    out_query, out_key, out_value = grad_qkv.unflatten(-1, (-1, head)).split(sizes, 1)
    for out, grad, x, weight_E in (
        (out_query, grad_query_SHE, query, query_weight_E),
        (out_key, grad_key_SKE, key, key_weight_E),
    ):
        out.copy_(norm_gradient(rotate(grad[..., :head], rotation).mul_(weight_E), x.float(), eps))
    out_value.copy_(grad_value_SKE)
    return grad_qkv


def rotate(x_SHE: Tensor, rotation: Tensor) -> Tensor:
    """Rotate adjacent pairs.

    Args:
        x_SHE: [S, H, E].
        rotation: [S, 1, E / 2] complex.

    Returns:
        [S, H, E] float32.
    """
    pairs = torch.view_as_complex(x_SHE.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


def _append_feature(x_SHE: Tensor, feature_S: Tensor) -> Tensor:
    """One feature of all heads of a token, then zeros: [S, H, E] -> [S, H, E + PADDING_FEATURES]."""
    features = F.pad(feature_S[:, None, None], (0, PADDING_FEATURES - 1))
    return torch.cat([x_SHE, features.expand(-1, x_SHE.shape[1], -1)], -1)
