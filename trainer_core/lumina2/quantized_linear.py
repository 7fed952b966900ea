"""A frozen Linear layer with 8-bit weights, whose products run in 8 bits where the GPU has them.

    W = diag(weight_scale) W8,   x = diag(x_scale) x8,   x W^T = diag(x_scale) (x8 W8^T) diag(weight_scale)

Inputs are quantised row by row as they come. The backward pass needs W, not W^T: its scales are multiplied into the
incoming gradient before that is quantised, so one stored copy of the weight serves both. Few rows, and all rows on a
GPU without such products, are multiplied in the input's dtype, which holds every number of 8 bits exactly.

Shape suffixes: S tokens, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ops.quantized_rows import QuantizedRows
from .quant.compressed_linear import CompressedLinear
from .quant.eight_bit import ALIGNMENT, MIN_ROWS, has_8_bit_products, multiply, quantize_weight


class QuantizedLinear(CompressedLinear):
    """See the module."""

    weight_8: Tensor
    """[O, I], float8_e4m3fn or int8."""
    weight_scale: Tensor
    """[O] float32."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        """Quantise a weight on its device.

        Args:
            weight_OI: Floating point; `weight` will give its dtype back.
            bias_O: Kept as it is.
            dtype: float8_e4m3fn or int8.
        """
        super().__init__(weight_OI, bias_O)
        weight_8, weight_scale = quantize_weight(weight_OI, dtype)
        self.weight_8 = nn.Parameter(weight_8, requires_grad=False)
        self.register_buffer("weight_scale", weight_scale)

    @property
    def stored_device(self) -> torch.device:
        return self.weight_8.device

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return (self.weight_8.float() * self.weight_scale.to(self.weight_8.device)[:, None]).to(dtype)

    def is_8_bit(self, x: Tensor) -> bool:
        """Whether the product with x, or of a gradient like it, is one of 8-bit matrices."""
        is_aligned = self.in_features % ALIGNMENT == 0 and self.out_features % ALIGNMENT == 0
        is_large = is_aligned and len(x) >= MIN_ROWS and x.dtype == torch.bfloat16
        return is_large and has_8_bit_products(x.device, self.weight_8.dtype)

    def product(self, x_SI: Tensor | QuantizedRows) -> Tensor:
        if isinstance(x_SI, Tensor) and self.is_8_bit(x_SI):
            from .ops.kernels.quantize import quantize_rows

            x_SI = quantize_rows(x_SI, self.weight_8.dtype)
        if isinstance(x_SI, QuantizedRows):
            out_SO = multiply(x_SI, self.weight_8.t(), self.weight_scale)
        else:
            out_SO = (x_SI @ self.weight_8.to(x_SI.dtype).t()).mul_(self.weight_scale)
        return out_SO if self.bias is None else out_SO.add_(self.bias)

    def input_gradient(self, grad_SO: Tensor) -> Tensor:
        if not self.is_8_bit(grad_SO):
            return (grad_SO * self.weight_scale).to(grad_SO.dtype) @ self.weight_8.to(grad_SO.dtype)
        from .ops.kernels.quantize import quantize_rows, transpose

        # The tensor cores of Hopper read 8-bit matrices along the summed dimension only, hence the transposed copy.
        rows = quantize_rows(grad_SO, self.weight_8.dtype, self.weight_scale)
        return multiply(rows, transpose(self.weight_8).t(), None)
