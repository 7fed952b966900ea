"""A frozen Linear layer with 8-bit weights, whose products run in 8 bits where the GPU has them.

    W = diag(weight_scale) W8,   x = diag(x_scale) x8,   x W^T = diag(x_scale) (x8 W8^T) diag(weight_scale)

Inputs are quantised row by row as they come. The backward pass needs W, not W^T: its scales are multiplied into the
incoming gradient before that is quantised, so one stored copy of the weight serves both. Few rows, and all rows on a
GPU without such products, are multiplied in the input's dtype, which holds every number of 8 bits exactly.

Shape suffixes: S tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .eight_bit import ALIGNMENT, MIN_ROWS, QuantizedRows, has_8_bit_products, multiply, quantize_weight


class QuantizedLinear(nn.Linear):
    """A Linear to everything that looks for one, peft included."""

    weight_8: Tensor
    """[O, I], float8_e4m3fn or int8."""
    weight_scale: Tensor
    """[O] float32."""
    update_A_RI: Tensor | None
    update_B_OR: Tensor | None
    """A product B A added to the weight, in float32. It is kept apart, for its entries are smaller than what separates
    two numbers of 8 bits."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        """Quantise a weight on its device.

        Args:
            weight_OI: Floating point; `weight` will give its dtype back.
            bias_O: Kept as it is.
            dtype: float8_e4m3fn or int8.
        """
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.out_features, self.in_features = weight_OI.shape
        self._dtype = weight_OI.dtype
        weight_8, weight_scale = quantize_weight(weight_OI, dtype)
        self.weight_8 = nn.Parameter(weight_8, requires_grad=False)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("update_A_RI", None)
        self.register_buffer("update_B_OR", None)
        self.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[O, I], what the layer multiplies with, made anew each time it is asked for; changes to it are lost."""
        device = self.weight_8.device  # a swapped block's is the CPU, where the rest of the layer is not
        weight_OI = self.weight_8.float() * self.weight_scale.to(device)[:, None]
        if self.update_A_RI is not None and self.update_B_OR is not None:
            weight_OI.addmm_(self.update_B_OR.to(device), self.update_A_RI.to(device))
        return weight_OI.to(self._dtype)

    def add_update(self, up_OR: Tensor, down_RI: Tensor) -> None:
        """Add a product of low rank to the weight, beside those added before."""
        device = self.weight_8.device
        up_OR, down_RI = up_OR.to(device, torch.float32), down_RI.to(device, torch.float32)
        if self.update_A_RI is not None and self.update_B_OR is not None:
            up_OR, down_RI = torch.cat([self.update_B_OR, up_OR], 1), torch.cat([self.update_A_RI, down_RI])
        self.update_A_RI, self.update_B_OR = down_RI, up_OR

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x_SI = x.to(dtype).flatten(0, -2)
        out_SO = _Product.apply(x_SI, self)
        if self.update_A_RI is not None and self.update_B_OR is not None:
            out_SO = out_SO + x_SI @ self.update_A_RI.to(dtype).t() @ self.update_B_OR.to(dtype).t()
        return out_SO.unflatten(0, x.shape[:-1])

    def is_8_bit(self, x: Tensor) -> bool:
        """Whether the product with x, or of a gradient like it, is one of 8-bit matrices."""
        is_aligned = self.in_features % ALIGNMENT == 0 and self.out_features % ALIGNMENT == 0
        is_large = is_aligned and len(x) >= MIN_ROWS and x.dtype == torch.bfloat16
        return is_large and has_8_bit_products(x.device, self.weight_8.dtype)

    def product(self, x_SI: Tensor | QuantizedRows) -> Tensor:
        """x W^T + b without the update, [S, O] in x's dtype; no gradient is recorded."""
        if isinstance(x_SI, Tensor) and self.is_8_bit(x_SI):
            from .kernels.quantize import quantize_rows

            x_SI = quantize_rows(x_SI, self.weight_8.dtype)
        if isinstance(x_SI, QuantizedRows):
            out_SO = multiply(x_SI, self.weight_8.t(), self.weight_scale)
        else:
            out_SO = (x_SI @ self.weight_8.to(x_SI.dtype).t()).mul_(self.weight_scale)
        return out_SO if self.bias is None else out_SO.add_(self.bias)

    def input_gradient(self, grad_SO: Tensor) -> Tensor:
        """grad W without the update, [S, I] in grad's dtype."""
        if not self.is_8_bit(grad_SO):
            return (grad_SO * self.weight_scale).to(grad_SO.dtype) @ self.weight_8.to(grad_SO.dtype)
        from .kernels.quantize import quantize_rows, transpose

        # The tensor cores of Hopper read 8-bit matrices along the summed dimension only, hence the transposed copy.
        rows = quantize_rows(grad_SO, self.weight_8.dtype, self.weight_scale)
        return multiply(rows, transpose(self.weight_8).t(), None)


class _Product(torch.autograd.Function):
    """`QuantizedLinear.product` with the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        with torch.autocast(x_SI.device.type, enabled=False):
            return linear.product(x_SI)

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.input_gradient(grad_SO), None
