"""Attention over packed sequences: every sample attends to its own tokens only.

FlashAttention 4, where it is installed, is told where the tokens of each sample start and its padding. Elsewhere
padding, where a layout has any, is told to attention by features: a query gets a one, a key of padding a large
negative number, and its weight in the softmax is exactly zero. cuDNN's attention, the fastest on Hopper, takes no mask
in PyTorch 2.11, but heads of queries and keys that are longer than those of values: 4% of its time.

Shape suffixes: S tokens of all samples, B samples, N longest sample, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .flash_attention import flash_attention, has_flash_attention

PADDING_FEATURES = 8
"""Added to the heads of queries and keys; the first marks padding, the others keep memory aligned."""
PADDING_LOGIT = -30000.0
"""Key feature of padding; after scaling still far below what a softmax in float32 can tell from zero."""


@functools.cache
def has_padded_attention(device: torch.device, num_heads: int, num_kv_heads: int, head_size: int) -> bool:
    """Whether attention over bfloat16 heads is as fast with padding as without: FlashAttention 4, or cuDNN on Hopper or
    newer.

    Args:
        device: Of the network.
        num_heads: Query heads.
        num_kv_heads: Key/value heads.
        head_size: Without padding features.
    """
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    if has_flash_attention(device):
        return True
    from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

    query, key, value = (
        torch.empty(1, heads, 128, size, dtype=torch.bfloat16, device=device)
        for heads, size in (
            (num_heads, head_size + PADDING_FEATURES),
            (num_kv_heads, head_size + PADDING_FEATURES),
            (num_kv_heads, head_size),
        )
    )
    return can_use_cudnn_attention(SDPAParams(query, key, value, None, 0.0, False, True))


@functools.cache
def find_varlen_attention() -> Callable[..., Tensor] | None:
    """PyTorch's attention over packed sequences; None before 2.10, where the padded path serves every device."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # here, because importing it takes 0.1 s
    except ImportError:
        return None
    return cast("Callable[..., Tensor]", varlen_attn)


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Where each sample's tokens lie in a packed sequence."""

    lengths: tuple[int, ...]
    """Tokens of each sample."""
    offsets: Tensor
    """[B + 1] int32, where each sample starts; the last is S. With padding [2 B + 1], where its padding starts too."""
    padded_index_BN: Tensor | None
    """[B, N] int64, packed position of each padded position (0 for padding); None if all lengths are equal."""
    packed_index_S: Tensor | None
    """[S] int64, padded position (in B * N) of each packed position."""
    mask_B11N: Tensor | None
    """[B, 1, 1, N] bool, True where a padded position holds a token."""
    is_padding_S: Tensor | None = None
    """[S] bool, True where the packed sequence itself holds padding; None if it holds none."""

    @classmethod
    def build(cls, lengths: tuple[int, ...], device: torch.device, is_padding_S: Tensor | None = None) -> Segments:
        """Precompute every index on the host, so that the network never waits for the device.

        Args:
            lengths: Tokens of each sample, with its padding.
            device: Where the indices are put.
            is_padding_S: Of samples filled up to one length, see `is_padding_S` above; at the end of each.
        """
        longest = max(lengths)
        starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        offsets = torch.tensor(starts, dtype=torch.int32)
        if is_padding_S is not None:
            num_tokens_B = torch.stack([(~is_padding).sum() for is_padding in is_padding_S.split(lengths)])
            ends_B = offsets[:-1] + num_tokens_B.int()
            offsets = torch.cat([torch.stack([offsets[:-1], ends_B], 1).flatten(), offsets[-1:]])
        offsets = offsets.to(device, non_blocking=True)
        if min(lengths) == longest:
            return cls(
                lengths=lengths,
                offsets=offsets,
                padded_index_BN=None,
                packed_index_S=None,
                mask_B11N=None,
                is_padding_S=None if is_padding_S is None else is_padding_S.to(device, non_blocking=True),
            )
        assert is_padding_S is None, "samples with padding have one length"
        position_N = torch.arange(longest)
        is_token_BN = position_N < torch.tensor(lengths)[:, None]
        padded_index_BN = torch.where(is_token_BN, position_N + torch.tensor(starts[:-1])[:, None], 0)
        return cls(
            lengths=lengths,
            offsets=offsets,
            padded_index_BN=padded_index_BN.to(device, non_blocking=True),
            packed_index_S=is_token_BN.flatten().nonzero().flatten().to(device, non_blocking=True),
            mask_B11N=is_token_BN[:, None, None].to(device, non_blocking=True),
        )


def padding_to_mark(segments: Segments, x_SD: Tensor) -> Tensor | None:
    """[S] bool, which queries and keys made of x_SD `attend` wants marked by features; None if none."""
    return None if _uses_flash_attention(x_SD) else segments.is_padding_S


def _uses_flash_attention(x: Tensor) -> bool:
    """Whether attention over these values is FlashAttention 4's."""
    return x.dtype is torch.bfloat16 and has_flash_attention(x.device)


def attend(query_SHE: Tensor, key_SKE: Tensor, value_SKE: Tensor, segments: Segments) -> Tensor:
    """Scaled dot-product attention within each sample.

    Args:
        query_SHE: [S, H, E], or longer by PADDING_FEATURES where `padding_to_mark`.
        key_SKE: [S, K, E], K divides H (grouped-query attention); longer as the queries are.
        value_SKE: [S, K, E].
        segments: Which tokens belong together.

    Returns:
        [S, H, E], dtype of the query.
    """
    if _uses_flash_attention(query_SHE):
        return flash_attention(query_SHE, key_SKE, value_SKE, segments.offsets, max(segments.lengths))
    if segments.padded_index_BN is None:
        return _attend_equal(query_SHE, key_SKE, value_SKE, len(segments.lengths))
    varlen_attention = find_varlen_attention() if _has_varlen_kernel(query_SHE) else None
    if varlen_attention is not None:
        return varlen_attention(
            query_SHE,
            _repeat_heads(key_SKE, query_SHE.shape[1]),
            _repeat_heads(value_SKE, query_SHE.shape[1]),
            segments.offsets,
            segments.offsets,
            max(segments.lengths),
            max(segments.lengths),
        )
    return _attend_padded(query_SHE, key_SKE, value_SKE, segments)


def _has_varlen_kernel(query_SHE: Tensor) -> bool:
    """Whether PyTorch's attention over packed sequences takes these values: half precision on Ampere or newer."""
    is_half = query_SHE.dtype in (torch.bfloat16, torch.float16)
    return query_SHE.is_cuda and is_half and torch.cuda.get_device_capability(query_SHE.device) >= (8, 0)


def _repeat_heads(x_SKE: Tensor, num_heads: int) -> Tensor:
    """Give every query head a key or value head of its own: [S, K, E] -> [S, H, E]."""
    return x_SKE.repeat_interleave(num_heads // x_SKE.shape[1], 1)


def _scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[B, H, N, E] from heads first. Grouped heads are left to PyTorch only where that stays on a fast kernel."""
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    is_grouped_fast = query.device.type == "cpu" or (query.is_cuda and mask is None and is_half)
    if not is_grouped_fast:
        # torch 2.6 to 2.14 computes grouped heads with a mask or in float32 by the quadratic math kernel on CUDA.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scale = value.shape[-1] ** -0.5  # queries may be longer, by features that mark padding
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=is_grouped_fast)


def _attend_equal(query_SHE: Tensor, key_SKE: Tensor, value_SKE: Tensor, num_samples: int) -> Tensor:
    query, key, value = (
        x.unflatten(0, (num_samples, -1)).transpose(1, 2) for x in (query_SHE, key_SKE, value_SKE)
    )  # [S, H, E] -> [B, H, N, E]
    out_BHNE = _scaled_dot_product(query, key, value, None)
    return out_BHNE.transpose(1, 2).flatten(0, 1)  # [B, H, N, E] -> [S, H, E]


def _attend_padded(query_SHE: Tensor, key_SKE: Tensor, value_SKE: Tensor, segments: Segments) -> Tensor:
    assert segments.padded_index_BN is not None, "padding asked for where all lengths are equal"
    assert segments.packed_index_S is not None, "a padded index without its inverse"
    shape_BN, index = segments.padded_index_BN.shape, segments.padded_index_BN.flatten()
    query, key, value = (
        x.index_select(0, index).unflatten(0, shape_BN).transpose(1, 2) for x in (query_SHE, key_SKE, value_SKE)
    )  # [S, H, E] -> [B, H, N, E]
    out_BHNE = _scaled_dot_product(query, key, value, segments.mask_B11N)
    return out_BHNE.transpose(1, 2).flatten(0, 1).index_select(0, segments.packed_index_S)  # [B, H, N, E] -> [S, H, E]
