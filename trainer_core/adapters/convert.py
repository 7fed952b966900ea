"""Converting an adapter file between ComfyUI's and diffusers' naming, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import TrainerError
from ..files import write_safetensors_atomically
from ..lumina2.name_map import to_native_module
from .export import ADAPTER_FORMATS, COMFYUI_KEY

DIFFUSERS_KEY = re.compile(r"transformer\.(.+)\.lora_([AB])\.weight")


def convert_adapter(source: Path, target: Path, to: str) -> None:
    """Convert a file; its metadata is kept.

    Args:
        source: In either naming.
        target: Written; must not exist.
        to: Key of ADAPTER_FORMATS.

    Raises:
        TrainerError: The source is no LoRA in either naming, or the target exists.
    """
    if target.exists():
        raise TrainerError(f"{target} exists: choose another name, no file is overwritten")
    try:
        with safe_open(source, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        raise TrainerError(f"{source} cannot be read: {error}") from error
    if tensors and all(COMFYUI_KEY.fullmatch(name) for name in tensors):
        native = tensors
    elif tensors and all(DIFFUSERS_KEY.fullmatch(name) for name in tensors):
        native = from_diffusers(tensors)
    else:
        raise TrainerError(f"{source} is not a LoRA for Lumina2 in ComfyUI's or diffusers' naming")
    write_safetensors_atomically(target, ADAPTER_FORMATS[to](native), metadata)


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI keys from diffusers', exactly.

    q, k and v that share one A keep their rank; otherwise their A are stacked and their B put on the block diagonal.

    Raises:
        TrainerError: A layer is unknown, or only some of q, k and v are adapted.
    """
    groups: dict[str, dict[int | None, tuple[Tensor, Tensor]]] = {}
    for key, up in tensors.items():
        module, part = DIFFUSERS_KEY.fullmatch(key).groups()  # type: ignore[union-attr]
        if part == "A":
            continue
        found = to_native_module(module)
        if found is None:
            raise TrainerError(f"{module} is not a layer of Lumina2")
        down = tensors[key.replace("lora_B", "lora_A")]
        groups.setdefault(found[0], {})[found[1]] = (down, up)
    native = {}
    for module, parts in groups.items():
        down, up = parts[None] if None in parts else _fuse_qkv(module, parts)
        native[f"diffusion_model.{module}.lora_A.weight"] = down
        native[f"diffusion_model.{module}.lora_B.weight"] = up
    return native


def _fuse_qkv(module: str, parts: Mapping[int | None, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if set(parts) != {0, 1, 2}:
        raise TrainerError(f"{module}: the file adapts only some of q, k and v, whose sizes it then does not tell")
    downs, ups = zip(*(parts[index] for index in range(3)), strict=True)
    if all(down.shape == downs[0].shape and torch.equal(down, downs[0]) for down in downs):
        return downs[0], torch.cat(ups)
    return torch.cat(downs), torch.block_diag(*ups)
