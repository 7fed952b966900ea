"""Captions and images as one sequence, without keeping either for the backward pass as `Tensor.index_copy` does.

Shape suffixes: S caption and image tokens of all samples, L caption tokens, T image tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .network.layout import TokenLayout


def join_tokens(caption_LD: Tensor, image_TD: Tensor, layout: TokenLayout) -> Tensor:
    """Every token at its place in the joint sequence, [S, D] in the images' dtype."""
    caption_LD = caption_LD.to(image_TD.dtype)
    return _Join.apply(caption_LD, image_TD, layout.caption_index_L, layout.image_index_T)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, caption_LD: Tensor, image_TD: Tensor, caption_index_L: Tensor, image_index_T: Tensor
    ) -> Tensor:
        ctx.save_for_backward(caption_index_L, image_index_T)
        joint_SD = image_TD.new_empty(len(caption_LD) + len(image_TD), image_TD.shape[1])
        return joint_SD.index_copy_(0, caption_index_L, caption_LD).index_copy_(0, image_index_T, image_TD)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor | None, ...]:
        indices = ctx.saved_tensors
        grads = [
            grad_SD.index_select(0, index) if is_needed else None
            for index, is_needed in zip(indices, ctx.needs_input_grad[:2], strict=True)
        ]
        return *grads, None, None
