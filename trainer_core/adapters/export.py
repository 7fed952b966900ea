"""Adapter files for ComfyUI and for diffusers, from the one that training writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import TrainerError
from ..files import find_free_path, write_safetensors_atomically
from ..lumina2.models.name_map import to_diffusers_modules
from ..settings import check_file_name
from .file_kinds import ADAPTER_KEY

COMFYUI_PREFIX = "diffusion_model."
ADAPTER_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EXACT_PARTS = (".dora_scale", ".rescale", ".alpha")
"""Stay float32: they are near what the base has already, and rounding them would change every row of it."""
LORA_KEY = re.compile(r"diffusion_model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter's weights with ComfyUI keys, and what it says of itself."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_adapter(path: Path) -> AdapterFile:
    """Read `adapter.safetensors`.

    Raises:
        TrainerError: The file is missing or damaged, or not an adapter of this project's kind.
    """
    if not path.exists():
        raise TrainerError(f"adapter {path.name} does not exist: train it again, or choose another")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise TrainerError(f"adapter {path.name} is damaged ({error})") from error
    foreign = [name for name in tensors if not ADAPTER_KEY.fullmatch(name)]
    if foreign or not tensors:
        raise TrainerError(f"adapter {path.name} is not a ComfyUI adapter for Lumina2: unexpected key {foreign[:1]}")
    return AdapterFile(tensors=tensors, metadata=metadata)


def to_comfyui(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Training writes ComfyUI's naming; nothing to change."""
    return dict(tensors)


def to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' naming: q, k and v share one A, and B is split by rows.

    Args:
        tensors: With ComfyUI keys and alpha folded.

    Returns:
        `transformer.<module>.lora_A.weight` and `.lora_B.weight`.

    Raises:
        TrainerError: The adapter is of a kind that diffusers does not load.
    """
    other = next((key for key in tensors if not LORA_KEY.fullmatch(key)), None)
    if other is not None:
        raise TrainerError(
            f"diffusers loads only plain LoRAs, but this adapter has {other.rpartition('.')[2]}:"
            " save it in format comfyui"
        )
    converted = {}
    for key, tensor in tensors.items():
        module, part = LORA_KEY.fullmatch(key).groups()  # type: ignore[union-attr]
        modules = to_diffusers_modules(module)
        rows = [tensor] * len(modules)
        if len(modules) == 3 and part == "B":
            query_rows = tensors[key.replace("lora_B", "lora_A")].shape[1]  # queries are as many as the width
            key_rows = (tensor.shape[0] - query_rows) // 2
            rows = list(tensor.split([query_rows, key_rows, key_rows]))
        for name, values in zip(modules, rows, strict=True):
            converted[f"transformer.{name}.lora_{part}.weight"] = values
    return converted


ADAPTER_FORMATS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "comfyui": to_comfyui,
    "diffusers": to_diffusers,
}
"""Each takes tensors with ComfyUI keys and gives the file's."""


def write_adapter(adapter: AdapterFile, folder: Path, name: str, adapter_format: str, dtype: str) -> Path:
    """Write one file under a name that is not taken; ComfyUI caches by path, so none is ever overwritten.

    Args:
        adapter: From `read_adapter`.
        folder: Made if it is missing.
        name: Without number and ending.
        adapter_format: Key of ADAPTER_FORMATS.
        dtype: Key of ADAPTER_DTYPES.
    """
    tensors = ADAPTER_FORMATS[adapter_format](adapter.tensors)
    check_file_name("name", name)
    path = find_free_path(folder, name, ".safetensors")
    cast = {
        key: tensor if key.endswith(EXACT_PARTS) else tensor.to(ADAPTER_DTYPES[dtype])
        for key, tensor in tensors.items()
    }
    write_safetensors_atomically(path, cast, {**adapter.metadata, "modelspec.title": path.stem})
    return path
