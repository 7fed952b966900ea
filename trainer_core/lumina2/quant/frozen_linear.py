"""Products with frozen weights, and a low-rank update on top of one.

Shape suffixes: S tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.cpu_matmul import add_product, linear, multiply
from ..ops.quantized_rows import QuantizedRows
from .compressed_linear import CompressedLinear


class FrozenLayer(NamedTuple):
    """x W^T + b with a frozen W, and + scaling * (x A^T) B^T where there is an A.

    The two products with A and B add into the results of those with W (cuBLAS reads what it adds to anyway), forward
    and backward; autograd on the formula would write and read each result once more.
    """

    linear: nn.Linear
    lora_A_RI: Tensor | None = None
    lora_B_OR: Tensor | None = None
    scaling: float = 1.0

    def product(
        self, x_SI: Tensor | None, rows: QuantizedRows | None = None, known_SO: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[S, O], and x A^T [S, R] for the backward pass.

        Args:
            x_SI: May be missing if there are rows and no A.
            rows: x quantised, where it has been already.
            known_SO: The first of the results, if it has been computed before.
        """
        if known_SO is not None:
            return known_SO, None if x_SI is None or self.lora_A_RI is None else self.inner(x_SI)
        base_input = x_SI if rows is None else rows
        assert base_input is not None, "nothing to multiply"
        out_SO = frozen_product(self.linear, base_input)
        if self.lora_A_RI is None or self.lora_B_OR is None:
            return out_SO, None
        assert x_SI is not None, "a low-rank update needs the input itself"
        inner_SR = self.inner(x_SI)
        return out_SO.addmm_(inner_SR, self.lora_B_OR.to(x_SI.dtype).t(), alpha=self.scaling), inner_SR

    def inner(self, x_SI: Tensor) -> Tensor:
        """x A^T, [S, R]."""
        assert self.lora_A_RI is not None, "there is no update"
        return x_SI @ self.lora_A_RI.to(x_SI.dtype).t()

    def inner_gradient(self, grad_SO: Tensor) -> Tensor | None:
        """Gradient of x A^T without the scaling, [S, R]."""
        return None if self.lora_B_OR is None else grad_SO @ self.lora_B_OR.to(grad_SO.dtype)

    def add_input_gradient(self, grad_SI: Tensor, grad_inner_SR: Tensor | None) -> Tensor:
        """Add the update's part to the gradient of x, in place."""
        if self.lora_A_RI is None or grad_inner_SR is None:
            return grad_SI
        return grad_SI.addmm_(grad_inner_SR, self.lora_A_RI.to(grad_SI.dtype), alpha=self.scaling)

    def factor_gradients(
        self, x_SI: Tensor | None, inner_SR: Tensor | None, grad_SO: Tensor, grad_inner_SR: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of A and B."""
        if self.lora_A_RI is None or self.lora_B_OR is None:
            return None, None
        assert x_SI is not None and inner_SR is not None and grad_inner_SR is not None, "the update was not computed"
        grad_A = _scaled_product(grad_inner_SR.t(), x_SI, self.scaling)
        grad_B = _scaled_product(grad_SO.t(), inner_SR, self.scaling)
        return grad_A.to(self.lora_A_RI.dtype), grad_B.to(self.lora_B_OR.dtype)


def _scaled_product(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """scaling * a b, in one kernel."""
    return torch.addmm(a.new_empty(1), a, b, beta=0, alpha=scaling)


def find_frozen_layer(module: nn.Module) -> FrozenLayer | None:
    """What a module computes, if it is a frozen Linear with or without a plain LoRA.

    An adapter's module tells it by a method `frozen_layer`, which returns None where it computes something else.
    """
    tell = getattr(module, "frozen_layer", None)
    if tell is not None:
        return tell()
    if isinstance(module, CompressedLinear):
        return FrozenLayer(module, module.update_A_RI, module.update_B_OR)
    return FrozenLayer(module) if type(module) is nn.Linear and not module.weight.requires_grad else None


def frozen_product(linear: nn.Linear, x_SI: Tensor | QuantizedRows) -> Tensor:
    """x W^T + b in x's dtype, [S, O]; no gradient is recorded."""
    if isinstance(linear, CompressedLinear):
        return linear.product(x_SI)
    assert isinstance(x_SI, Tensor), "8-bit rows for a weight that is not"
    bias = None if linear.bias is None else linear.bias.to(x_SI.dtype)
    return multiply(x_SI, linear.weight.to(x_SI.dtype), bias)


def frozen_input_gradient(linear: nn.Linear, grad_SO: Tensor) -> Tensor:
    """Gradient of the input of `frozen_product`, [S, I]."""
    if isinstance(linear, CompressedLinear):
        return linear.input_gradient(grad_SO)
    return multiply(grad_SO, linear.weight.to(grad_SO.dtype).t())


def add_frozen_input_gradient(linear: nn.Linear, grad_SO: Tensor, grad_SI: Tensor) -> Tensor:
    """Add `frozen_input_gradient` to what is there already, in place."""
    if isinstance(linear, CompressedLinear):
        return linear.add_input_gradient(grad_SO, grad_SI)
    return add_product(grad_SI, grad_SO, linear.weight.to(grad_SO.dtype).t())


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """What a Linear or what took its place makes of x [..., I]; hooks of a plain Linear are not called."""
    layer = find_frozen_layer(module)
    if layer is not None:
        return multiply_frozen(layer, x)
    return linear(x, module.weight, module.bias) if type(module) is nn.Linear else module(x)


def multiply_frozen(layer: FrozenLayer, x: Tensor) -> Tensor:
    """The layer's output for x [..., I], with gradients for x, A and B."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    out_SO = _FrozenProduct.apply(x.to(dtype).flatten(0, -2), *layer)
    return out_SO.unflatten(0, x.shape[:-1])


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SI: Tensor, linear: nn.Linear, lora_A_RI: Tensor | None, lora_B_OR: Tensor | None, scaling: float
    ) -> Tensor:
        with torch.autocast(x_SI.device.type, enabled=False):
            out_SO, inner_SR = FrozenLayer(linear, lora_A_RI, lora_B_OR, scaling).product(x_SI)
        is_trained = any(factor is not None and factor.requires_grad for factor in (lora_A_RI, lora_B_OR))
        kept = (x_SI, inner_SR) if is_trained else (None, None)
        ctx.save_for_backward(*kept, lora_A_RI, lora_B_OR)
        ctx.linear, ctx.scaling = linear, scaling
        return out_SO

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor | None, ...]:
        x_SI, inner_SR, lora_A_RI, lora_B_OR = ctx.saved_tensors
        layer = FrozenLayer(ctx.linear, lora_A_RI, lora_B_OR, ctx.scaling)
        grad_inner = layer.inner_gradient(grad_SO)
        grad_A, grad_B = None, None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            grad_A, grad_B = layer.factor_gradients(x_SI, inner_SR, grad_SO, grad_inner)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = layer.add_input_gradient(frozen_input_gradient(ctx.linear, grad_SO), grad_inner)
        return grad_x, None, grad_A, grad_B, None
