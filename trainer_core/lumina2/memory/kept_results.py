"""What a recomputed block may keep beside its input: the results that take long and are small.

Attention, with the sums of its softmax, is a quarter of a block's forward pass, and SwiGLU with w2 a fifth; the result
of each is as large as the block's input, and all that a block computes is fourteen times that. At 1024 x 1024 (H100),
1 GiB for the results of all blocks takes a recomputed step from 0.156 to 0.138 s; 1 GiB for a few blocks' activations
saves 0.005 s.

Shape suffixes: S tokens, D width, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from ..ops.attention import Segments, attend, find_varlen_attention
from ..ops.flash_attention import flash_operator

ATTENTION_KERNELS = (
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)
"""Of PyTorch, in `torch.ops.aten`. What it computes otherwise, by its math kernel, is computed again."""


@functools.cache
def attention_kernels() -> list[OpOverload]:
    """The operators whose results are kept."""
    kernels = [getattr(torch.ops.aten, name).default for name in ATTENTION_KERNELS if hasattr(torch.ops.aten, name)]
    kernels.append(flash_operator())
    has_varlen = torch.cuda.is_available() and find_varlen_attention() is not None
    if has_varlen and hasattr(torch.ops.torch_attn, "_varlen_attn"):
        kernels.append(torch.ops.torch_attn._varlen_attn.default)
    return kernels


class KeptResults:
    """Of one block, from its first computation to the second."""

    def __init__(self) -> None:
        self._first, self._again = create_selective_checkpoint_contexts(attention_kernels())
        self.fed_SD: Tensor | None = None
        """The MLP's result; None where it is computed again."""

    def take_fed(self) -> Tensor | None:
        """The MLP's result, which is kept no longer."""
        fed_SD, self.fed_SD = self.fed_SD, None
        return fed_SD

    def attend_first(self, query_SHE: Tensor, key_SKE: Tensor, value_SKE: Tensor, segments: Segments) -> Tensor:
        """`attend` without a graph, but with everything a backward pass will need of it."""
        query_SHE, key_SKE, value_SKE = (x.detach().requires_grad_() for x in (query_SHE, key_SKE, value_SKE))
        with self._first, torch.enable_grad():
            out_SHE = attend(query_SHE, key_SKE, value_SKE, segments)
        return out_SHE.detach()

    def attend_again(self, query_SHE: Tensor, key_SKE: Tensor, value_SKE: Tensor, segments: Segments) -> Tensor:
        """`attend` with its graph, and the results of the first time."""
        with self._again:
            return attend(query_SHE, key_SKE, value_SKE, segments)
