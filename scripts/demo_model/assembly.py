"""Putting the trained parts into one all-in-one file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lumina2_trainer.trainer_core.files import write_safetensors_atomically
from lumina2_trainer.trainer_core.lumina2.encoders.vae_names import to_ldm_state_dict
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import AXES_DIMS_KEY
from lumina2_trainer.trainer_core.lumina2.models.save import join_parts
from torch import Tensor
from transformers import Gemma2Model

from .network import NUM_GEMMA_LAYERS, DemoNetwork, gemma_config

METADATA = {
    "modelspec.title": "Lumina2 demo",
    "modelspec.architecture": "lumina-2",
    "modelspec.description": (
        "A tiny Lumina2 that draws emoji at 128 x 128, trained from random weights by lumina2-trainer."
    ),
    "modelspec.license": "Apache-2.0",
    "modelspec.resolution": "128x128",
}


def write_demo_file(
    path: Path, network_state: dict[str, Tensor], vae_state: dict[str, Tensor], vocabulary: bytes
) -> None:
    """Write the model in bf16.

    Args:
        path: The `.safetensors` file.
        network_state: Of a DemoNetwork.
        vae_state: Of the autoencoder.
        vocabulary: The SentencePiece model.
    """
    network = DemoNetwork()
    network.load_state_dict(network_state)
    torch.manual_seed(0)
    # Lumina2 reads the state before the last layer: that layer and the final norm keep their random weights.
    text_encoder = Gemma2Model(gemma_config(NUM_GEMMA_LAYERS))
    text_encoder.load_state_dict(network.text_encoder.state_dict(), strict=False)
    tensors = join_parts(
        network.transformer.bfloat16().state_dict(),
        text_encoder.bfloat16().state_dict(),
        vocabulary,
        to_ldm_state_dict({name: tensor.bfloat16() for name, tensor in vae_state.items()}),
    )
    axes = {AXES_DIMS_KEY: json.dumps(list(network.transformer.config.axes_dims))}
    write_safetensors_atomically(path, tensors, {**METADATA, **axes})
