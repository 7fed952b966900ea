"""Adding an adapter to the weights, as ComfyUI's LoRA loaders do."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import TrainerError
from ..lumina2.quantized_linear import QuantizedLinear


@torch.no_grad()
def merge_lora(transformer: nn.Module, tensors: Mapping[str, Tensor], strength: float) -> int:
    """Add `strength * B A` to each weight, in place, computed in float32; 8-bit weights keep it beside them.

    Args:
        transformer: In the native layout.
        tensors: With ComfyUI keys and alpha folded, from `export_lora`.
        strength: 1 is as trained.

    Returns:
        The number of weights changed.

    Raises:
        TrainerError: A key names no weight of this transformer, or its shape does not fit.
    """
    modules = dict(transformer.named_modules())
    changed = 0
    for key, down in tensors.items():
        match = re.fullmatch(r"diffusion_model\.(.+)\.lora_A\.weight", key)
        if match is None:
            continue
        up = tensors[key.replace(".lora_A.", ".lora_B.")]
        linear = modules.get(match[1])
        if not isinstance(linear, nn.Linear):
            raise TrainerError(f"the adapter has weights for {match[1]}, which this base does not have")
        shape = (linear.out_features, linear.in_features)
        if (up.shape[0], down.shape[1]) != shape:
            raise TrainerError(
                f"the adapter was trained on another size of Lumina2: {match[1]} is {shape} here"
                f" and {(up.shape[0], down.shape[1])} there"
            )
        _add(linear, strength * up.float(), down.float())
        changed += 1
    return changed


def _add(linear: nn.Linear, up_OR: Tensor, down_RI: Tensor) -> None:
    if isinstance(linear, QuantizedLinear):
        linear.add_update(up_OR, down_RI)
        return
    weight = linear.weight
    delta_OI = up_OR.to(weight.device) @ down_RI.to(weight.device)
    weight.copy_((weight.float() + delta_OI).to(weight.dtype))
