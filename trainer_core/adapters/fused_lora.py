"""peft's LoRA on a Linear layer, with the plain case computed as a `FrozenLayer`."""

from __future__ import annotations

from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from ..lumina2.frozen_linear import FrozenLayer, find_frozen_layer, multiply_frozen


class FusedLoRALinear(Linear):
    """peft's own layer where anything but a plain LoRA on a frozen layer is asked for."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        layer = self.frozen_layer()
        return super().forward(x, *args, **kwargs) if layer is None else multiply_frozen(layer, x)

    def frozen_layer(self) -> FrozenLayer | None:
        """The base with its low-rank update, if that is all there is."""
        base = find_frozen_layer(self.base_layer)
        if base is None or base.lora_A_RI is not None or not self._is_plain():
            return None
        (name,) = self.active_adapters
        return base._replace(
            lora_A_RI=self.lora_A[name].weight, lora_B_OR=self.lora_B[name].weight, scaling=self.scaling[name]
        )

    def _is_plain(self) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (name,) = self.active_adapters
        has_variant = name not in self.lora_A or name in getattr(self, "lora_variant", {})  # DoRA and the like
        has_bias = has_variant or self.lora_B[name].bias is not None
        has_dropout = not has_variant and self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        return not (has_variant or has_bias or has_dropout)
