"""Adding an adapter to the weights, as ComfyUI's LoRA loaders do."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import TrainerError


@torch.no_grad()
def merge_lora(transformer: nn.Module, tensors: Mapping[str, Tensor], strength: float) -> int:
    """Add `strength * B A` to each weight, in place, computed in float32.

    Args:
        transformer: In the native layout.
        tensors: With ComfyUI keys and alpha folded, from `export_lora`.
        strength: 1 is as trained.

    Returns:
        The number of weights changed.

    Raises:
        TrainerError: A key names no weight of this transformer, or its shape does not fit.
    """
    weights = dict(transformer.named_parameters())
    changed = 0
    for key, down in tensors.items():
        match = re.fullmatch(r"diffusion_model\.(.+)\.lora_A\.weight", key)
        if match is None:
            continue
        up = tensors[key.replace(".lora_A.", ".lora_B.")]
        weight = weights.get(f"{match[1]}.weight")
        if weight is None:
            raise TrainerError(f"the adapter has weights for {match[1]}, which this base does not have")
        if (up.shape[0], down.shape[1]) != tuple(weight.shape):
            raise TrainerError(
                f"the adapter was trained on another size of Lumina2: {match[1]} is {tuple(weight.shape)} here"
                f" and {(up.shape[0], down.shape[1])} there"
            )
        delta = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
        weight.copy_((weight.float() + strength * delta).to(weight.dtype))
        changed += 1
    return changed
