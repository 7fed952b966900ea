"""Recognises files that are not Lumina2, by the names of their tensors."""

from __future__ import annotations

from collections.abc import Iterable

SIGNS = {
    "a Z-Image model": ("x_pad_token", "cap_pad_token", "all_x_embedder."),
    "a NewBie model": ("clip_text_pooled_proj.",),
    "a Lumina-Next model": ("layers.0.attention.wq.", "layers.0.attn2."),
    "a Chroma model": ("distilled_guidance_layer.",),
    "a Flux model": ("double_blocks.", "single_transformer_blocks."),
    "an AuraFlow model": ("double_layers.",),
    "a Qwen-Image model": ("transformer_blocks.0.img_mlp.",),
    "a Stable Diffusion 3 model": ("joint_blocks.", "context_embedder."),
    "an SDXL model": ("label_emb.", "add_embedding."),
    "a Stable Diffusion 1.5 or 2 model": ("input_blocks.", "down_blocks."),
    "a PixArt model": ("adaln_single.", "t_block."),
    "a Wan model": ("blocks.0.self_attn.",),
}
"""Beginnings of tensor names that only one family has; the first that fits counts."""

PARTS = {
    "a text encoder": ("model.layers.", "text_model.", "encoder.block."),
    "a VAE": ("decoder.", "first_stage_model.", "vae."),
}
ADAPTER_SIGNS = (".lora_A.", ".lora_down.", ".lora_up.", ".hada_w1", ".lokr_w1", ".oft_blocks")
PREFIX = "model.diffusion_model."


def describe_foreign(names: Iterable[str]) -> str | None:
    """What a file is by its tensor names ("a Flux model", "a VAE"), or None if that is unknown or Lumina2."""
    names = list(names)
    if any(sign in name for name in names for sign in ADAPTER_SIGNS):
        return "an adapter (LoRA or the like)"
    inner = [name.removeprefix(PREFIX) for name in names]
    for family, signs in SIGNS.items():
        if any(name.startswith(signs) for name in inner):
            return family
    if any("cap_embedder." in name or "time_caption_embed." in name for name in names):
        return None
    return next((part for part, signs in PARTS.items() if any(n.startswith(signs) for n in names)), None)
