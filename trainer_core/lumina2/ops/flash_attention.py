"""FlashAttention 4, an optional package for Hopper: at heads of 96 features faster than cuDNN's attention.

One picture of 1024 x 1024, 24 heads, on an H100: 0.27 ms forward and 0.80 backward, where cuDNN takes 0.35 and 1.0. It
also reads grouped heads of samples of different lengths as they are. Its kernels are compiled on their first use, in
18 s, and kept in the folder for temporary files.

Shape suffixes: S tokens of all samples, B samples, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

logger = logging.getLogger(__name__)

MODULE = "flash_attn.cute.interface"
TRIAL_SHAPE = (512, 24, 8, 96)
"""Tokens, query heads, key/value heads and head size of the trial: those of Lumina2, so that its kernels are used."""
MIN_LONGEST = 256
"""Shorter parts are announced as this long: for them version 4.0.0b36 would compile kernels of their own, in the middle
of a run, which the trial has not seen."""
MAX_TRIAL_ERROR = 0.02
"""Relative, against PyTorch's attention in float32; bfloat16 alone makes 0.003."""


def has_flash_attention(device: torch.device) -> bool:
    """Whether the package is there for this device and computes what it should."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return _passes_trial(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _passes_trial(index: int) -> bool:
    """The same for a GPU, found out once; says why, if the package is there but is not used."""
    device = torch.device("cuda", index)
    if torch.cuda.get_device_capability(device)[0] != 9:
        return False
    try:
        _load_kernels()
    except Exception as error:  # whatever a package that is not part of this one may do wrong
        is_missing = isinstance(error, ModuleNotFoundError) and MODULE.startswith(error.name or "?")
        if not is_missing:
            logger.warning("flash-attn-4 cannot be imported and is not used: %s", error)
        return False
    logger.info("Trying FlashAttention 4; its kernels are compiled once, in about 20 seconds")
    try:
        with torch.cuda.device(device):  # it compiles for the current one
            distance = _trial_error(device)
    except Exception as failure:
        logger.warning("flash-attn-4 fails in a trial and is not used: %s", failure)
        return False
    if not distance <= MAX_TRIAL_ERROR:
        logger.warning("flash-attn-4 computes other numbers in a trial (%.3f) and is not used", distance)
        return False
    logger.info("Attention is FlashAttention 4's")
    return True


def flash_attention(query_SHE: Tensor, key_SKE: Tensor, value_SKE: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """Scaled dot-product attention within each part of a packed sequence.

    Args:
        query_SHE: [S, H, E] bfloat16 or float16.
        key_SKE: [S, K, E], K divides H.
        value_SKE: [S, K, E].
        offsets: [parts + 1] int32, where each part starts; the last is S. Parts may be empty.
        longest: No part has more tokens.

    Returns:
        [S, H, E].
    """
    return _FlashAttention.apply(query_SHE, key_SKE, value_SKE, offsets, longest)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int) -> Tensor:
        out, sums_HS = flash_operator()(query, key, value, offsets, longest)
        ctx.save_for_backward(query, key, value, out, sums_HS, offsets)
        ctx.longest = longest
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums_HS, offsets = ctx.saved_tensors
        grads = _load_kernels()._flash_attn_bwd(
            query,
            key,
            value,
            out,
            grad,
            sums_HS,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_lengths(offsets, ctx.longest),
        )
        return *grads[:3], None, None


def _forward(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The result, and the sums of the softmax as logarithms [H, S]."""
    out, sums_HS, *_ = _load_kernels()._flash_attn_fwd(query, key, value, return_lse=True, **_lengths(offsets, longest))
    return out, sums_HS


def _lengths(offsets: Tensor, longest: int) -> dict[str, Any]:
    longest = max(longest, MIN_LONGEST)
    return {
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": offsets,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


@functools.cache
def _load_kernels() -> ModuleType:
    """What PyTorch itself binds to as its "FA4" (torch/nn/attention/_fa4.py)."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")  # read at the import: kernels go to disk
    return importlib.import_module(MODULE)


def _trial_error(device: torch.device) -> float:
    """Relative error of the result and of all gradients, for two parts and an empty one between them."""
    tokens, num_heads, num_kv_heads, size = TRIAL_SHAPE
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(tokens, heads, size, device=device, generator=generator).bfloat16()
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    ]
    target = torch.randn(tokens, num_heads, size, device=device, generator=generator)
    border = tokens * 2 // 3
    offsets = torch.tensor([0, border, border, tokens], dtype=torch.int32, device=device)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        query, key, value = leaves = [x.to(dtype).requires_grad_() for x in inputs]
        with torch.enable_grad():
            if dtype is torch.bfloat16:
                out = flash_attention(query, key, value, offsets, tokens)
            else:
                out = _reference(query, key, value, border)
            results.append([out, *torch.autograd.grad((out.float() * target).sum(), leaves)])
    errors = [((x.float() - y).norm() / y.norm()).item() for x, y in zip(*results, strict=True)]
    return max(errors)


def _reference(query: Tensor, key: Tensor, value: Tensor, border: int) -> Tensor:
    parts = []
    for rows in (slice(None, border), slice(border, None)):
        q, k, v = (x[rows].transpose(0, 1)[None] for x in (query, key, value))  # [S, H, E] -> [1, H, S, E]
        parts.append(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(parts)


def flash_operator() -> OpOverload:
    """The forward pass as an operator, so that recomputation can keep its results."""
    _define_operator()
    return torch.ops.lumina2_trainer.flash_attention.default


@functools.cache
def _define_operator() -> torch.library.Library:
    """Holds the definition as long as this module is there; a second copy of the package finds it made."""
    library = torch.library.Library("lumina2_trainer", "FRAGMENT")
    if not hasattr(torch.ops.lumina2_trainer, "flash_attention"):
        schema = "(Tensor query, Tensor key, Tensor value, Tensor offsets, int longest) -> (Tensor, Tensor)"
        library.define(f"flash_attention{schema}")
        library.impl("flash_attention", _forward, "CompositeExplicitAutograd")
    return library
