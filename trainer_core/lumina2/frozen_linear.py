"""Products with frozen weights, and a low-rank update on top of one.

Shape suffixes: S tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantized_linear import QuantizedLinear


def frozen_product(linear: nn.Linear, x_SI: Tensor) -> Tensor:
    """x W^T + b in x's dtype, [S, O]; no gradient is recorded."""
    if isinstance(linear, QuantizedLinear):
        return linear.product(x_SI)
    bias = None if linear.bias is None else linear.bias.to(x_SI.dtype)
    return F.linear(x_SI, linear.weight.to(x_SI.dtype), bias)


def frozen_input_gradient(linear: nn.Linear, grad_SO: Tensor) -> Tensor:
    """Gradient of the input of `frozen_product`, [S, I]."""
    if isinstance(linear, QuantizedLinear):
        return linear.input_gradient(grad_SO)
    return grad_SO @ linear.weight.to(grad_SO.dtype)


class LowRankProduct(torch.autograd.Function):
    """x W^T + b + scaling * (x A^T) B^T with a frozen W, without a pass over memory of its own for the update.

    The two products with A and B add into the results of those with W (cuBLAS reads what it adds to anyway), forward
    and backward; autograd on the formula would write and read each result once more.
    """

    @staticmethod
    def forward(
        ctx: Any, x_SI: Tensor, linear: nn.Linear, lora_A_RI: Tensor, lora_B_OR: Tensor, scaling: float
    ) -> Tensor:
        A_RI, B_OR = lora_A_RI.to(x_SI.dtype), lora_B_OR.to(x_SI.dtype)
        with torch.autocast(x_SI.device.type, enabled=False):
            inner_SR = x_SI @ A_RI.t()
            out_SO = frozen_product(linear, x_SI).addmm_(inner_SR, B_OR.t(), alpha=scaling)
        ctx.save_for_backward(x_SI, inner_SR, lora_A_RI, lora_B_OR)
        ctx.linear, ctx.scaling = linear, scaling
        return out_SO

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor | None, ...]:
        x_SI, inner_SR, lora_A, lora_B = ctx.saved_tensors
        grad_inner_SR = grad_SO @ (lora_B * ctx.scaling).to(grad_SO.dtype)
        grad_B = (grad_SO.t() @ inner_SR).to(lora_B.dtype) * ctx.scaling
        grad_A = (grad_inner_SR.t() @ x_SI).to(lora_A.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = frozen_input_gradient(ctx.linear, grad_SO).addmm_(grad_inner_SR, lora_A.to(grad_SO.dtype))
        return grad_x, None, grad_A, grad_B, None
