"""peft's LoRA on a Linear layer, with the plain case computed as a `FrozenLayer`.

Shape suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from ..lumina2.quant.frozen_linear import FrozenLayer, apply_linear, find_frozen_layer, multiply_frozen


class FusedLoRALinear(Linear):
    """peft's own layer where anything but a plain LoRA on a frozen layer is asked for.

    An adapter that starts from factors of the weight itself (PiSSA, OLoRA) must have them subtracted to start as the
    identity. peft subtracts them from the weight; here they stay beside it, so that the base is rounded no second time
    and may be 8-bit.
    """

    start_A_RI: Tensor | None
    start_B_OR: Tensor | None
    """Subtracted: B A, scaled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("start_A_RI", None)
        self.register_buffer("start_B_OR", None)

    def subtract_start(self, start_A_RI: Tensor, start_B_OR: Tensor) -> None:
        """Subtract a product, in place of one that was subtracted before."""
        self.start_A_RI, self.start_B_OR = start_A_RI.detach(), start_B_OR.detach()

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        layer = self.frozen_layer()
        if layer is not None:
            return multiply_frozen(layer, x)
        if self.disable_adapters and not self.merged:  # the base alone, computed as beneath an adapter
            return apply_linear(self.base_layer, x)
        if self._is_low_rank() and self.start_A_RI is None:
            return self._multiply_dropping_out(x)
        out = super().forward(x, *args, **kwargs)
        if self.start_A_RI is None or self.start_B_OR is None or self.disable_adapters:
            return out
        inner = F.linear(x.to(out.dtype), self.start_A_RI.to(out.dtype))
        return out - F.linear(inner, self.start_B_OR.to(out.dtype))

    def frozen_layer(self) -> FrozenLayer | None:
        """The base with its low-rank update, if that is all there is."""
        base = find_frozen_layer(self.base_layer)
        if base is None or base.lora_A_RI is not None or not self._is_low_rank() or self._drops_out():
            return None
        (name,) = self.active_adapters
        down_RI, up_OR, scaling = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        if self.start_A_RI is not None and self.start_B_OR is not None:
            down_RI = torch.cat([down_RI, self.start_A_RI])
            up_OR, scaling = torch.cat([scaling * up_OR, -self.start_B_OR], dim=1), 1.0
        return base._replace(lora_A_RI=down_RI, lora_B_OR=up_OR, scaling=scaling)

    def _multiply_dropping_out(self, x: Tensor) -> Tensor:
        (name,) = self.active_adapters
        out = apply_linear(self.base_layer, x)
        dropped = self.lora_dropout[name](x).to(self.lora_A[name].weight.dtype)
        update = self.lora_B[name](self.lora_A[name](dropped))
        return torch.add(out, update.to(out.dtype), alpha=self.scaling[name])

    def _is_low_rank(self) -> bool:
        """Whether the update is B A alone, but for dropout."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (name,) = self.active_adapters
        has_variant = name not in self.lora_A or name in getattr(self, "lora_variant", {})  # DoRA and the like
        return not has_variant and self.lora_B[name].bias is None

    def _drops_out(self) -> bool:
        (name,) = self.active_adapters
        return self.training and not isinstance(self.lora_dropout[name], nn.Identity)
