"""The demo model's sizes and its first weights."""

from __future__ import annotations

import torch
from lumina2_trainer.trainer_core.lumina2.network.layout import TokenLayout
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model

from .vocabulary import VOCABULARY_SIZE

TRANSFORMER_CONFIG = Lumina2Config(
    hidden_size=256,
    num_layers=6,
    num_refiner_layers=2,
    num_attention_heads=4,
    num_kv_heads=2,
    cap_feat_dim=256,
    axes_dims=(24, 20, 20),
    mlp_size=1024,
)
"""12.2 M parameters."""

NUM_GEMMA_LAYERS = 3
"""Lumina2 reads the state before the last layer, so two of them do the work."""


def gemma_config(num_layers: int) -> Gemma2Config:
    """Gemma2 of width 256; ComfyUI fixes the head size at 256 and has no soft cap."""
    return Gemma2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=None,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        attn_implementation="eager",
    )


class DemoNetwork(nn.Module):
    """The text encoder up to the state Lumina2 reads, and the transformer; trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = Gemma2Model(gemma_config(NUM_GEMMA_LAYERS - 1))
        self.text_encoder.norm = nn.Identity()  # the state before the last layer is not normed
        self.transformer = Lumina2Transformer(TRANSFORMER_CONFIG)
        initialise_transformer(self.transformer)

    def encode_text(self, token_ids_BN: Tensor) -> Tensor:
        """[B, N] ids, padded on the right -> [B, N, 256]; a token looks only to its left, so padding needs no mask."""
        size = token_ids_BN.shape[1]
        is_hidden_NN = torch.ones(size, size, dtype=torch.bool, device=token_ids_BN.device).triu(1)
        mask_11NN = torch.zeros(1, 1, size, size, device=token_ids_BN.device).masked_fill(is_hidden_NN, -1e9)
        masks = {"full_attention": mask_11NN, "sliding_attention": mask_11NN}
        return self.text_encoder(token_ids_BN, attention_mask=masks, use_cache=False).last_hidden_state

    def forward(
        self, token_ids_BN: Tensor, token_index_L: Tensor, image_TC: Tensor, timesteps_B: Tensor, layout: TokenLayout
    ) -> Tensor:
        """Velocity of each patch.

        Args:
            token_ids_BN: [B, N] captions, padded on the right.
            token_index_L: [L] int64, position in B * N of each packed caption token.
            image_TC: [T, C] noisy patches.
            timesteps_B: [B] float32, t from 0 (noise) to 1 (image).
            layout: How the samples are packed.
        """
        prompt_embeds_L = self.encode_text(token_ids_BN).flatten(0, 1)[token_index_L]
        return self.transformer(image_TC, timesteps_B, prompt_embeds_L, layout)


def initialise_transformer(transformer: Lumina2Transformer) -> None:
    """Xavier for the matrices, zero for modulation and output, as Alpha-VLLM/Lumina-Image-2.0, models/model.py."""
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if "adaLN_modulation" in name or name == "final_layer.linear":
            nn.init.zeros_(module.weight)
        elif name.startswith(("t_embedder", "cap_embedder")):
            # The original starts cap_embedder at zero; here the text encoder behind it needs a gradient from the start.
            nn.init.normal_(module.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
