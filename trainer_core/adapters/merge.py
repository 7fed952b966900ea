"""Adding an adapter to the weights, as ComfyUI's LoRA loaders do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import TrainerError
from ..lumina2.quant.compressed_linear import CompressedLinear
from .file_kinds import Parts, change_of_weight, split_by_module

LOW_RANK_PARTS = {"lora_A.weight", "lora_B.weight"}


@torch.no_grad()
def merge_adapter(transformer: nn.Module, tensors: Mapping[str, Tensor], strength: float) -> int:
    """Change each weight that an adapter names, in place, computed in float32.

    A layer of 8 or 4 bits keeps a LoRA beside its weight, and becomes a plain Linear for any other kind.

    Args:
        transformer: In the native layout.
        tensors: With ComfyUI keys.
        strength: 1 is as trained.

    Returns:
        The number of weights changed.

    Raises:
        TrainerError: A key names no weight of this transformer, or its shape does not fit.
    """
    modules = dict(transformer.named_modules())
    by_module = split_by_module(tensors)
    for name, parts in by_module.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise TrainerError(f"the adapter has weights for {name}, which this base does not have")
        if isinstance(linear, CompressedLinear) and set(parts) == LOW_RANK_PARTS:
            _add_low_rank(name, linear, parts, strength)
            continue
        weight = linear.weight
        merged = (weight.float() + change_of_weight(name, parts, weight, strength)).to(weight.dtype)
        if isinstance(linear, CompressedLinear):
            _replace(modules, name, _plain_linear(merged, linear.bias))
        else:
            linear.weight.copy_(merged)
    return len(by_module)


def _add_low_rank(name: str, linear: CompressedLinear, parts: Parts, strength: float) -> None:
    up_OR, down_RI = parts["lora_B.weight"].float(), parts["lora_A.weight"].float()
    shape = (linear.out_features, linear.in_features)
    if (len(up_OR), down_RI.shape[1]) != shape:
        raise TrainerError(
            f"the adapter was trained on another size of Lumina2: {name} is {shape} here"
            f" and {(len(up_OR), down_RI.shape[1])} there"
        )
    linear.add_update(strength * up_OR, down_RI)


def _plain_linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O.detach(), requires_grad=False)
    return linear


def _replace(modules: Mapping[str, nn.Module], name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    modules[parent].register_module(child, new)
