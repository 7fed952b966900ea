"""Imported by scripts inside the host: its own network, text encoder and VAE in small sizes."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor


def build_model(sizes: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """The host's Lumina2 of any size in float32.

    Args:
        sizes: dim, cap_feat_dim, n_layers, n_refiner_layers, n_heads, n_kv_heads, axes_dims.
        weights: Native names without prefix; each one must be used.
    """
    fixed = {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "qk_norm": True,
        "axes_lens": [300, 512, 512],
    }
    config = comfy.supported_models.Lumina2({**fixed, **sizes})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    found = model.diffusion_model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys, found
    assert set(found.missing_keys) <= {"norm_final.weight"}, found
    return model.eval()


def build_clip(weights: dict[str, Tensor]) -> comfy.sd.CLIP:
    """The host's CLIP from a split Gemma2 file of any size with heads of 256."""
    width, heads, kv_heads = (
        weights["model.embed_tokens.weight"].shape[1],
        weights["model.layers.0.self_attn.q_proj.weight"].shape[0] // 256,
        weights["model.layers.0.self_attn.k_proj.weight"].shape[0] // 256,
    )
    sizes = {
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": weights["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": len({name.split(".")[2] for name in weights if name.startswith("model.layers.")}),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    return comfy.sd.load_text_encoder_state_dicts(
        [weights], clip_type=comfy.sd.CLIPType.LUMINA2, model_options={"gemma2_2b_model_config": sizes}
    )
