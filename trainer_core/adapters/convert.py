"""Converting an adapter file of any naming to ComfyUI's or diffusers'."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import TrainerError
from ..files import write_safetensors_atomically
from .export import ADAPTER_FORMATS, COMFYUI_PREFIX
from .file_kinds import is_native
from .foreign_lora import PEFT_METADATA, LoRAFile, read_lora_file, to_native_factors


def convert_adapter(source: Path, target: Path, to: str) -> None:
    """Convert a file; its metadata is kept.

    Args:
        source: A LoRA in any naming, or an adapter of another kind in ComfyUI's.
        target: Written; must not exist.
        to: Key of ADAPTER_FORMATS.

    Raises:
        TrainerError: The source is no adapter for Lumina2, or cannot have that naming, or the target exists.
    """
    if target.exists():
        raise TrainerError(f"{target} exists: choose another name, no file is overwritten")
    file = read_lora_file(source)
    native = file.tensors if is_native(file.tensors) else _renamed(file, source.name)
    metadata = {name: value for name, value in file.metadata.items() if name != PEFT_METADATA}  # alpha is folded now
    write_safetensors_atomically(target, ADAPTER_FORMATS[to](native), metadata)


def _renamed(file: LoRAFile, name: str) -> dict[str, Tensor]:
    factors = to_native_factors(file, name)
    return {
        f"{COMFYUI_PREFIX}{module}.lora_{part}.weight": tensor
        for module, pair in factors.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
