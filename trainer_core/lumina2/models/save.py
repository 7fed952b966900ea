"""Writes a model in the layouts that users share, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...files import StoredTensor, write_safetensors_atomically
from ..encoders.text_files import ALL_IN_ONE_TEXT_PREFIX, ALL_IN_ONE_TOKENIZER_NAME, find_text_files
from ..encoders.vae import ALL_IN_ONE_VAE_PREFIX
from ..network.transformer import Lumina2Config
from ..weights.weight_files import read_weights
from .checkpoint import ALL_IN_ONE_PREFIX, AXES_DIMS_KEY
from .diffusers_folder import write_diffusers_folder
from .model_files import Lumina2Model
from .stored_parts import text_encoder_tensors, to_ldm_tensors, transformer_tensors, vae_tensors


@dataclass(frozen=True, kw_only=True)
class ModelLayout:
    """A way to write a model."""

    kind: str
    """The kind of model folder it belongs in, as ComfyUI names it."""
    ending: str
    """Of its name; empty for a folder."""
    write: Callable[[Lumina2Model, Path, torch.dtype], None]
    """Takes the model, a free path and the transformer's dtype."""


def _write_all_in_one(model: Lumina2Model, path: Path, dtype: torch.dtype) -> None:
    config, transformer = transformer_tensors(Path(model.base_path), dtype)
    files = find_text_files(Path(model.text_encoder_path))
    _, vae = vae_tensors(Path(model.vae_path))
    tensors = join_parts(transformer, text_encoder_tensors(files), files.read_spiece(), to_ldm_tensors(vae))
    write_safetensors_atomically(path, tensors, _metadata(model, path, config))


def _write_transformer(model: Lumina2Model, path: Path, dtype: torch.dtype) -> None:
    config, transformer = transformer_tensors(Path(model.base_path), dtype)
    write_safetensors_atomically(path, transformer, _metadata(model, path, config))


def _metadata(model: Lumina2Model, path: Path, config: Lumina2Config) -> dict[str, str]:
    """What the model said of itself so far, under its new name."""
    base_path = Path(model.base_path)
    known = {} if base_path.is_dir() else dict(read_weights(base_path).metadata)
    return {**known, "modelspec.title": path.stem, AXES_DIMS_KEY: json.dumps(list(config.axes_dims))}


MODEL_LAYOUTS: dict[str, ModelLayout] = {
    "all-in-one": ModelLayout(kind="checkpoints", ending=".safetensors", write=_write_all_in_one),
    "transformer": ModelLayout(kind="diffusion_models", ending=".safetensors", write=_write_transformer),
    "diffusers": ModelLayout(kind="diffusers", ending="", write=write_diffusers_folder),
}
"""By name."""

AnyTensor = Tensor | StoredTensor


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
