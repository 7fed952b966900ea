"""A frozen Linear layer with weights of 4 bits, see `quant/four_bit.py`.

The weight is unpacked in the input's dtype for each product, forward and backward, and gone after it: what is kept is
the packed weight alone. A GPU unpacks a matrix in the time of reading and writing it once.

Shape suffixes: S tokens, I inputs, O outputs, N blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quant.compressed_linear import CompressedLinear
from .quant.four_bit import make_levels, pack, unpack


class FourBitLinear(CompressedLinear):
    """See the module."""

    weight_4: Tensor
    """[O, I / 2] uint8: two numbers to a byte."""
    weight_scale_N1: Tensor
    """float32. Two dimensions let it be swapped with the weight."""
    levels: Tensor
    """[16] float32."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Quantise a weight on its device.

        Args:
            weight_OI: Floating point; `weight` will give its dtype back.
            bias_O: Kept as it is.
        """
        super().__init__(weight_OI, bias_O)
        weight_4, weight_scale_N1 = pack(weight_OI)
        self.weight_4 = nn.Parameter(weight_4, requires_grad=False)
        self.register_buffer("weight_scale_N1", weight_scale_N1)
        self.register_buffer("levels", make_levels(weight_OI.device), persistent=False)

    @property
    def stored_device(self) -> torch.device:
        return self.weight_4.device

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return unpack(self.weight_4, self.weight_scale_N1, self.levels.to(self.weight_4.device), dtype)

    def product(self, x_SI: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_SI.dtype)
        return F.linear(x_SI, self.unpacked(x_SI.dtype), bias)

    def input_gradient(self, grad_SO: Tensor) -> Tensor:
        return grad_SO @ self.unpacked(grad_SO.dtype)

    def add_input_gradient(self, grad_SO: Tensor, grad_SI: Tensor) -> Tensor:
        return grad_SI.addmm_(grad_SO, self.unpacked(grad_SO.dtype))
