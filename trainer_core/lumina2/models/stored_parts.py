"""The three parts of a model as tensors that are read from their files when they are written to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import StoredTensor
from ..encoders.text_files import TextFiles
from ..encoders.vae import inspect_vae
from ..encoders.vae_names import is_attention_projection, to_ldm_name
from ..network.transformer import Lumina2Config
from ..weights.weight_files import DTYPES, TensorEntry
from ..weights.weight_reader import WeightReader
from .checkpoint import inspect_transformer
from .name_map import diffusers_row_slices

CPU = torch.device("cpu")
StoredTensors = dict[str, StoredTensor]


def transformer_tensors(path: Path, dtype: torch.dtype) -> tuple[Lumina2Config, StoredTensors]:
    """Sizes, and the weights by native names.

    Args:
        path: All-in-one or transformer `.safetensors`, or a diffusers folder.
        dtype: Of the weights.
    """
    config, plan = inspect_transformer(path)
    shapes = {name: (sum(e.shape[0] for e in entries), *entries[0].shape[1:]) for name, entries in plan.items()}
    return config, {name: _stored(entries, shapes[name], dtype) for name, entries in plan.items()}


def to_diffusers_tensors(native: Mapping[str, StoredTensor], config: Lumina2Config) -> StoredTensors:
    """The same under diffusers' names, with q, k and v apart."""
    tensors = {}
    for name, tensor in native.items():
        module, _, kind = name.rpartition(".")
        for diffusers_module, rows in diffusers_row_slices(module, config):
            count = len(range(*rows.indices(tensor.shape[0])))
            tensors[f"{diffusers_module}.{kind}"] = StoredTensor(
                shape=(count, *tensor.shape[1:]), dtype=tensor.dtype, read=partial(_read_rows, tensor.read, rows)
            )
    return tensors


def text_encoder_tensors(files: TextFiles) -> StoredTensors:
    """Gemma2's weights by transformers' names, in the dtype they are stored in; scaled fp8 becomes bfloat16."""
    return {name: _stored([entry], entry.shape, _own_dtype(entry)) for name, entry in files.tensors.items()}


def vae_tensors(path: Path) -> tuple[Any, StoredTensors]:
    """diffusers' AutoencoderKL without weights, and the weights by its names, in the dtype they are stored in."""
    vae, plan = inspect_vae(path)
    return vae, {name: _stored([entry], entry.shape, _own_dtype(entry)) for name, entry in plan.items()}


def to_ldm_tensors(diffusers: Mapping[str, StoredTensor]) -> StoredTensors:
    """A VAE's weights as LDM names and shapes them."""
    tensors = {}
    for name, tensor in diffusers.items():
        shape = (*tensor.shape, 1, 1) if is_attention_projection(name) else tensor.shape
        tensors[to_ldm_name(name)] = StoredTensor(
            shape=shape, dtype=tensor.dtype, read=partial(_read_shaped, tensor.read, shape)
        )
    return tensors


def _own_dtype(entry: TensorEntry) -> torch.dtype:
    return torch.bfloat16 if entry.scale is not None else DTYPES[entry.dtype]


def _stored(entries: Sequence[TensorEntry], shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    return StoredTensor(shape=shape, dtype=dtype, read=partial(_read, tuple(entries), dtype))


def _read(entries: Sequence[TensorEntry], dtype: torch.dtype) -> Tensor:
    with WeightReader(entries) as reader:
        parts = [reader.read_new(entry, device=CPU, dtype=dtype) for entry in entries]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_rows(read: Callable[[], Tensor], rows: slice) -> Tensor:
    return read()[rows]


def _read_shaped(read: Callable[[], Tensor], shape: tuple[int, ...]) -> Tensor:
    return read().reshape(shape)
