"""Names of the transformer's weights in diffusers and in the native (ComfyUI) layout.

The only weights that differ in more than their name are q, k and v: diffusers keeps three matrices, the native layout
stacks their rows in this order, without permutation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..network.transformer import Lumina2Config

QKV_PARTS = ("attn.to_q", "attn.to_k", "attn.to_v")

TOP_MODULES = {
    "x_embedder": "x_embedder",
    "time_caption_embed.caption_embedder.0": "cap_embedder.0",
    "time_caption_embed.caption_embedder.1": "cap_embedder.1",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}
"""diffusers -> native, outside of the blocks."""

BLOCK_MODULES = {
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
    "norm2": "attention_norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}
"""diffusers -> native, inside every block."""

MODULATED_MODULES = {**BLOCK_MODULES, "norm1.linear": "adaLN_modulation.1", "norm1.norm": "attention_norm1"}
UNMODULATED_MODULES = {**BLOCK_MODULES, "norm1": "attention_norm1"}
BLOCKS = {
    "layers": MODULATED_MODULES,
    "noise_refiner": MODULATED_MODULES,
    "context_refiner": UNMODULATED_MODULES,
}
BLOCK_NAME = re.compile(r"(layers|noise_refiner|context_refiner)\.(\d+)\.(.+)")


def to_native_module(diffusers_module: str) -> tuple[str, int | None] | None:
    """The native module that holds a diffusers module.

    Returns:
        Its name, and 0, 1 or 2 where it is the q, k or v rows of `attention.qkv`; None if there is no such module.
    """
    block = BLOCK_NAME.fullmatch(diffusers_module)
    if block is None:
        top = TOP_MODULES.get(diffusers_module)
        return None if top is None else (top, None)
    stack, index, inner = block.groups()
    if inner in QKV_PARTS:
        return f"{stack}.{index}.attention.qkv", QKV_PARTS.index(inner)
    native = BLOCKS[stack].get(inner)
    return None if native is None else (f"{stack}.{index}.{native}", None)


def to_diffusers_modules(native_module: str) -> tuple[str, ...]:
    """The diffusers modules that a native module is made of: three for `attention.qkv`, one for any other."""
    block = BLOCK_NAME.fullmatch(native_module)
    stack, index, inner = block.groups() if block else ("", "", native_module)
    if block and inner == "attention.qkv":
        return tuple(f"{stack}.{index}.{part}" for part in QKV_PARTS)
    names = BLOCKS[stack] if block else TOP_MODULES
    found = [diffusers for diffusers, native in names.items() if native == inner]
    assert len(found) == 1, f"no diffusers name for {native_module}"
    return (f"{stack}.{index}.{found[0]}" if block else found[0],)


def diffusers_row_slices(native_module: str, config: Lumina2Config) -> list[tuple[str, slice]]:
    """The diffusers modules of a native module and the output rows each of them has there.

    Args:
        native_module: Such as `layers.0.attention.qkv`.
        config: Sizes of the network, for the rows of q, k and v.

    Returns:
        (diffusers module, rows of the native weight); `slice(None)` where the module is the whole weight.
    """
    modules = to_diffusers_modules(native_module)
    if len(modules) == 1:
        return [(modules[0], slice(None))]
    bounds = [0]
    for rows in config.qkv_rows:
        bounds.append(bounds[-1] + rows)
    return [(module, slice(bounds[i], bounds[i + 1])) for i, module in enumerate(modules)]


def diffusers_config(config: Lumina2Config) -> dict[str, Any]:
    """The arguments of a Lumina2Transformer2DModel of the same sizes."""
    return {
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_refiner_layers": config.num_refiner_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_kv_heads": config.num_kv_heads,
        "cap_feat_dim": config.cap_feat_dim,
        "axes_dim_rope": config.axes_dims,
    }


def to_diffusers_state_dict(native_state: Mapping[str, Tensor], config: Lumina2Config) -> dict[str, Tensor]:
    """Native weights under diffusers' names, q, k and v apart."""
    state = {}
    for name, tensor in native_state.items():
        module, _, kind = name.rpartition(".")
        for diffusers_module, rows in diffusers_row_slices(module, config):
            state[f"{diffusers_module}.{kind}"] = tensor[rows].contiguous()
    return state
