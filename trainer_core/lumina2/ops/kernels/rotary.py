"""Normalise the heads of queries and keys and rotate them, straight from the fused qkv product.

A program takes one token with all its heads; values are not touched. The norms are computed again in the backward pass.

Shape suffixes: S tokens, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import PADDING_FEATURES, PADDING_LOGIT


@triton.jit
def _load_rotation(table_ptr, row, HEAD: tl.constexpr, BLOCK_HEAD: tl.constexpr):
    pair = tl.arange(0, BLOCK_HEAD // 2)
    return tl.load(table_ptr + row * (HEAD // 2) + pair, pair < HEAD // 2, 0.0)[None, :]


@triton.jit
def _load_weights(query_weight_ptr, key_weight_ptr, is_query, feature, HEAD: tl.constexpr):
    query_weight = tl.load(query_weight_ptr + feature, feature < HEAD, 0.0).to(tl.float32)
    key_weight = tl.load(key_weight_ptr + feature, feature < HEAD, 0.0).to(tl.float32)
    return tl.where(is_query[:, None], query_weight[None, :], key_weight[None, :])


@triton.jit
def _rotate(x, cos, sin, BLOCK_HEADS: tl.constexpr, BLOCK_HEAD: tl.constexpr):
    even, odd = tl.split(tl.reshape(x, [BLOCK_HEADS, BLOCK_HEAD // 2, 2]))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [BLOCK_HEADS, BLOCK_HEAD])


@triton.jit
def _forward(
    qkv_ptr,
    query_weight_ptr,
    key_weight_ptr,
    cos_ptr,
    sin_ptr,
    is_padding_ptr,
    out_ptr,
    eps,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PADDING: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)
    feature = tl.arange(0, BLOCK_HEAD)
    inside = (head < QUERY_HEADS + KEY_HEADS)[:, None] & (feature < HEAD)[None, :]
    at = head[:, None] * HEAD + feature[None, :]
    x = tl.load(qkv_ptr + row * (QUERY_HEADS + 2 * KEY_HEADS) * HEAD + at, inside, 0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 1) / HEAD + eps)[:, None]
    x *= _load_weights(query_weight_ptr, key_weight_ptr, head < QUERY_HEADS, feature, HEAD)
    cos = _load_rotation(cos_ptr, row, HEAD, BLOCK_HEAD)
    sin = _load_rotation(sin_ptr, row, HEAD, BLOCK_HEAD)
    x = _rotate(x, cos, sin, BLOCK_HEADS, BLOCK_HEAD)
    OUT_HEAD: tl.constexpr = HEAD + FEATURES
    start = row * (QUERY_HEADS + KEY_HEADS) * OUT_HEAD
    tl.store(out_ptr + start + head[:, None] * OUT_HEAD + feature[None, :], x, inside)
    if FEATURES > 0:
        is_padding = tl.load(is_padding_ptr + row) != 0
        mark = tl.where(head < QUERY_HEADS, 1.0, tl.where(is_padding, PADDING, 0.0))
        feature = tl.arange(0, BLOCK_OUT)
        mark = tl.where((feature == 0)[None, :], mark[:, None], 0.0)
        inside = (head < QUERY_HEADS + KEY_HEADS)[:, None] & (feature < FEATURES)[None, :]
        tl.store(out_ptr + start + head[:, None] * OUT_HEAD + HEAD + feature[None, :], mark, inside)


@triton.jit
def _backward(
    grad_query_ptr,
    grad_key_ptr,
    grad_value_ptr,
    qkv_ptr,
    query_weight_ptr,
    key_weight_ptr,
    cos_ptr,
    sin_ptr,
    grad_qkv_ptr,
    eps,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KEY_HEADS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)
    feature = tl.arange(0, BLOCK_HEAD)
    is_feature = (feature < HEAD)[None, :]
    is_query = head < QUERY_HEADS
    is_key = (head >= QUERY_HEADS) & (head < QUERY_HEADS + KEY_HEADS)
    at_query = row * query_stride + head[:, None] * query_head_stride + feature[None, :]
    at_key = row * key_stride + (head[:, None] - QUERY_HEADS) * key_head_stride + feature[None, :]
    grad = tl.load(grad_query_ptr + at_query, is_query[:, None] & is_feature, 0.0).to(tl.float32)
    grad += tl.load(grad_key_ptr + at_key, is_key[:, None] & is_feature, 0.0).to(tl.float32)
    cos = _load_rotation(cos_ptr, row, HEAD, BLOCK_HEAD)
    sin = _load_rotation(sin_ptr, row, HEAD, BLOCK_HEAD)
    grad = _rotate(grad, cos, -sin, BLOCK_HEADS, BLOCK_HEAD)
    grad *= _load_weights(query_weight_ptr, key_weight_ptr, is_query, feature, HEAD)

    start = row * (QUERY_HEADS + 2 * KEY_HEADS) * HEAD
    inside = (is_query | is_key)[:, None] & is_feature
    at = start + head[:, None] * HEAD + feature[None, :]
    x = tl.load(qkv_ptr + at, inside, 0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / HEAD + eps)[:, None]
    x *= rstd
    grad = rstd * (grad - x * (tl.sum(grad * x, 1) / HEAD)[:, None])
    tl.store(grad_qkv_ptr + at, grad, inside)

    value_head = tl.arange(0, BLOCK_KEY_HEADS)
    inside = (value_head < KEY_HEADS)[:, None] & is_feature
    at_value = row * value_stride + value_head[:, None] * value_head_stride + feature[None, :]
    value = tl.load(grad_value_ptr + at_value, inside, 0.0)
    at = start + (QUERY_HEADS + KEY_HEADS + value_head[:, None]) * HEAD + feature[None, :]
    tl.store(grad_qkv_ptr + at, value, inside)


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
    """Normalised and rotated queries [S, H, E] and keys [S, K, E], with features for padding if there is any.

    Both are views of one tensor.
    """
    num_tokens, head = len(qkv_SX), len(query_weight_E)
    num_heads = qkv_SX.shape[1] // head - 2 * num_kv_heads
    num_features = 0 if is_padding_S is None else PADDING_FEATURES
    out = qkv_SX.new_empty(num_tokens, num_heads + num_kv_heads, head + num_features)
    _forward[(num_tokens,)](
        qkv_SX,
        query_weight_E,
        key_weight_E,
        cos,
        sin,
        is_padding_S,
        out,
        eps,
        FEATURES=num_features,
        BLOCK_OUT=triton.next_power_of_2(PADDING_FEATURES),
        PADDING=PADDING_LOGIT,
        **_meta(num_heads, num_kv_heads, head),
    )
    return out[:, :num_heads], out[:, num_heads:]


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
    num_tokens, num_heads, num_kv_heads = *grad_query_SHE.shape[:2], grad_key_SKE.shape[1]
    grads = [g if g.stride(-1) == 1 else g.contiguous() for g in (grad_query_SHE, grad_key_SKE, grad_value_SKE)]
    grad_qkv = torch.empty_like(qkv_SX)
    _backward[(num_tokens,)](
        *grads,
        qkv_SX,
        query_weight_E,
        key_weight_E,
        cos,
        sin,
        grad_qkv,
        eps,
        *(stride for g in grads for stride in g.stride()[:2]),
        BLOCK_KEY_HEADS=triton.next_power_of_2(num_kv_heads),
        **_meta(num_heads, num_kv_heads, len(query_weight_E)),
    )
    return grad_qkv


def _meta(num_heads: int, num_kv_heads: int, head: int) -> dict[str, int]:
    """Compile-time arguments of both kernels."""
    return {
        "QUERY_HEADS": num_heads,
        "KEY_HEADS": num_kv_heads,
        "HEAD": head,
        "BLOCK_HEADS": triton.next_power_of_2(num_heads + num_kv_heads),
        "BLOCK_HEAD": triton.next_power_of_2(head),
        "num_warps": 8,
    }
