"""Writes a whole model as one file that ComfyUI's Load Checkpoint and this pack read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files import StoredTensor, write_safetensors_atomically
from .encoders.text_files import ALL_IN_ONE_TEXT_PREFIX, ALL_IN_ONE_TOKENIZER_NAME
from .encoders.vae import ALL_IN_ONE_VAE_PREFIX
from .encoders.vae_names import to_ldm_state_dict
from .models.checkpoint import ALL_IN_ONE_PREFIX, AXES_DIMS_KEY
from .network.transformer import Lumina2Transformer

AnyTensor = Tensor | StoredTensor


def save_all_in_one(
    path: Path,
    *,
    transformer: Lumina2Transformer,
    text_encoder_state: Mapping[str, Tensor],
    spiece_bytes: bytes,
    vae_state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write transformer, text encoder, tokenizer and VAE, each weight in the dtype it has.

    Args:
        path: The `.safetensors` file.
        transformer: Without an adapter.
        text_encoder_state: A transformers Gemma2Model's weights (`embed_tokens.weight`, `layers.0...`, `norm.weight`).
        spiece_bytes: The SentencePiece model's file.
        vae_state: A diffusers AutoencoderKL's weights.
        metadata: Added to the file's metadata; the head's axes are written by themselves.
    """
    tensors = join_parts(transformer.state_dict(), text_encoder_state, spiece_bytes, to_ldm_state_dict(vae_state))
    axes = {AXES_DIMS_KEY: json.dumps(list(transformer.config.axes_dims))}
    write_safetensors_atomically(path, tensors, {**metadata, **axes})


def join_parts(
    transformer: Mapping[str, AnyTensor],
    text_encoder: Mapping[str, AnyTensor],
    spiece_bytes: bytes,
    vae: Mapping[str, AnyTensor],
) -> dict[str, AnyTensor]:
    """All tensors of the file.

    Args:
        transformer: By native names.
        text_encoder: By transformers' names.
        spiece_bytes: The SentencePiece model's file.
        vae: By LDM names.
    """
    parts = {ALL_IN_ONE_PREFIX: transformer, ALL_IN_ONE_TEXT_PREFIX: text_encoder, ALL_IN_ONE_VAE_PREFIX: vae}
    tensors = {f"{prefix}{name}": tensor for prefix, part in parts.items() for name, tensor in part.items()}
    return {**tensors, ALL_IN_ONE_TOKENIZER_NAME: torch.frombuffer(bytearray(spiece_bytes), dtype=torch.uint8)}
