"""Saving and continuing: bf16 safetensors in parts of at most 15 MB."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_PART_BYTES = 15_000_000


def save_state(directory: Path, name: str, tensors: dict[str, Tensor], progress: dict[str, float]) -> None:
    """Write `<name>-<part>.safetensors`, in bf16.

    Args:
        directory: Made if missing.
        name: Of the state.
        tensors: Any dtype, any device.
        progress: Numbers to continue from.
    """
    directory.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        tensor = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if size + tensor.nbytes > MAX_PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = tensor
        size += tensor.nbytes
    for index, part in enumerate(parts):
        save_file(part, directory / f"{name}-{index}.safetensors", metadata={"progress": json.dumps(progress)})


def load_state(directory: Path, name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The inverse of `save_state`, in float32; empty where there is none."""
    tensors: dict[str, Tensor] = {}
    progress: dict[str, float] = {}
    for path in sorted(directory.glob(f"{name}-*.safetensors")):
        tensors.update({key: tensor.float() for key, tensor in load_file(path).items()})
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
    return tensors, progress
