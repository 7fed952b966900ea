"""A frozen Linear layer whose weight is stored in fewer bits than it is multiplied in.

Shape suffixes: S tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class CompressedLinear(nn.Linear, ABC):
    """A Linear to everything that looks for one, peft included; a subclass says how W is stored."""

    update_A_RI: Tensor | None
    update_B_OR: Tensor | None
    """A product B A added to the weight, in float32. It is kept apart, for its entries are smaller than what separates
    two numbers of few bits."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Take over sizes and bias; the weight itself is stored by the subclass.

        Args:
            weight_OI: Floating point; `weight` will give its dtype back.
            bias_O: Kept as it is.
        """
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.out_features, self.in_features = weight_OI.shape
        self._dtype = weight_OI.dtype
        self.register_buffer("update_A_RI", None)
        self.register_buffer("update_B_OR", None)
        self.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))

    @property
    @abstractmethod
    def stored_device(self) -> torch.device:
        """Where W is stored; of a swapped block the CPU."""

    @abstractmethod
    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """W without the update, [O, I], on the device where it is stored."""

    @abstractmethod
    def product(self, x_SI: Any) -> Tensor:
        """x W^T + b without the update, [S, O] in x's dtype; no gradient is recorded."""

    @abstractmethod
    def input_gradient(self, grad_SO: Tensor) -> Tensor:
        """grad W without the update, [S, I] in grad's dtype."""

    def add_input_gradient(self, grad_SO: Tensor, grad_SI: Tensor) -> Tensor:
        """Add `input_gradient` to what is there already, in place."""
        return grad_SI.add_(self.input_gradient(grad_SO))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[O, I], what the layer multiplies with, made anew each time it is asked for; changes to it are lost."""
        weight_OI = self.unpacked(torch.float32)
        device = weight_OI.device  # a swapped block's is the CPU, where the rest of the layer is not
        if self.update_A_RI is not None and self.update_B_OR is not None:
            weight_OI.addmm_(self.update_B_OR.to(device), self.update_A_RI.to(device))
        return weight_OI.to(self._dtype)

    def add_update(self, up_OR: Tensor, down_RI: Tensor) -> None:
        """Add a product of low rank to the weight, beside those added before."""
        device = self.stored_device
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


class _Product(torch.autograd.Function):
    """`CompressedLinear.product` with the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, linear: CompressedLinear) -> Tensor:
        ctx.linear = linear
        with torch.autocast(x_SI.device.type, enabled=False):
            return linear.product(x_SI)

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.input_gradient(grad_SO), None
