"""peft's LoRA on a Linear layer, with the plain case computed by `LowRankProduct`."""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from ..lumina2.frozen_linear import LowRankProduct


class FusedLoRALinear(Linear):
    """peft's own layer where anything but a plain LoRA on a frozen layer is asked for."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not self._is_plain():
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x_SI = x.to(dtype).flatten(0, -2)
        out_SO = LowRankProduct.apply(
            x_SI, self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )
        return out_SO.unflatten(0, x.shape[:-1])

    def _is_plain(self) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (name,) = self.active_adapters
        has_variant = name not in self.lora_A or name in getattr(self, "lora_variant", {})  # DoRA and the like
        has_bias = has_variant or self.lora_B[name].bias is not None
        has_dropout = not has_variant and self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        return not (has_variant or has_bias or has_dropout or self.base_layer.weight.requires_grad)
