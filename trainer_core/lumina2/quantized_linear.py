"""A frozen Linear layer with 8-bit weights, whose products run in 8 bits where the GPU has them.

    W = diag(weight_scale) W8,   x = diag(x_scale) x8,   x W^T = diag(x_scale) (x8 W8^T) diag(weight_scale)

Inputs are quantised row by row as they come. The backward pass needs W, not W^T: its scales are multiplied into the
incoming gradient before that is quantised, so one stored copy of the weight serves both.

Shape suffixes: S tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import has_triton

MIN_ROWS = 32
"""Fewer rows than this are not worth quantising: the product waits for the weight to be read either way."""
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""Largest magnitude by dtype."""


class QuantizedLinear(nn.Linear):
    """Holds W8 as `weight` and one float32 scale a row as `weight_scale`."""

    weight_scale: Tensor
    """[O] float32."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        """Quantise a weight on its device.

        Args:
            weight_OI: Floating point.
            bias_O: Kept as it is.
            dtype: float8_e4m3fn or int8.
        """
        super().__init__(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
        scale_O = weight_OI.abs().amax(1).float().clamp(min=1e-12) / LARGEST[dtype]
        scaled_OI = weight_OI.float() / scale_O[:, None]
        self.weight = nn.Parameter(
            (scaled_OI.round() if dtype == torch.int8 else scaled_OI).to(dtype), requires_grad=False
        )
        self.register_buffer("weight_scale", scale_O)
        if bias_O is not None:
            self.bias = nn.Parameter(bias_O, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        out_SO = _Product.apply(x.to(dtype).flatten(0, -2), self)
        return out_SO.unflatten(0, x.shape[:-1])

    def product(self, x_SI: Tensor) -> Tensor:
        """x W^T + b, [S, O] in x's dtype; no gradient is recorded."""
        if not self._is_8_bit(x_SI):
            return F.linear(x_SI, self.dequantized(x_SI.dtype), self.bias)
        from .kernels.quantize import quantize_rows

        x8, x_scale = quantize_rows(x_SI, self.weight.dtype)
        out_SO = _multiply(x8, x_scale, self.weight.t(), self.weight_scale, x_SI.dtype)
        return out_SO if self.bias is None else out_SO.add_(self.bias)

    def input_gradient(self, grad_SO: Tensor) -> Tensor:
        """grad W, [S, I] in grad's dtype."""
        if not self._is_8_bit(grad_SO):
            return grad_SO @ self.dequantized(grad_SO.dtype)
        from .kernels.quantize import quantize_rows, transpose

        grad8, grad_scale = quantize_rows(grad_SO, self.weight.dtype, self.weight_scale)
        # The tensor cores of Hopper read 8-bit matrices along the summed dimension only, hence the transposed copy.
        return _multiply(grad8, grad_scale, transpose(self.weight).t(), None, grad_SO.dtype)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight, [O, I]."""
        return (self.weight.to(torch.float32) * self.weight_scale[:, None]).to(dtype)

    def _is_8_bit(self, x_SI: Tensor) -> bool:
        if not x_SI.is_cuda or len(x_SI) < MIN_ROWS or not has_triton() or x_SI.dtype == torch.float32:
            return False
        needed = (8, 0) if self.weight.dtype == torch.int8 else (8, 9)
        return torch.cuda.get_device_capability(x_SI.device) >= needed


def _multiply(a8: Tensor, a_scale: Tensor, b8: Tensor, b_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """diag(a_scale) a8 b8 diag(b_scale) in dtype."""
    if a8.dtype == torch.int8:
        from .kernels.quantize import rescale

        return rescale(torch._int_mm(a8, b8), a_scale, b_scale, dtype)
    ones = torch.ones(1, b8.shape[1], device=a8.device) if b_scale is None else b_scale[None]
    return torch._scaled_mm(a8, b8, scale_a=a_scale, scale_b=ones, out_dtype=dtype, use_fast_accum=True)


class _Product(torch.autograd.Function):
    """`QuantizedLinear.product` with the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return linear.product(x_SI)

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.input_gradient(grad_SO), None
