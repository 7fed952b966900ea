"""LoRA files under any of the names in use: read as A and B of native layers, and converted.

A key is a prefix (`diffusion_model.`, `transformer.`, `lora_unet_`, ...), a layer in native or diffusers' naming, with
dots or underscores, and a part (`lora_A`, `lora_down`, `alpha`, ...). Every combination is read.

Shape suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import TrainerError
from ..files import write_safetensors_atomically
from ..lumina2.models.name_map import MODULATED_MODULES, QKV_PARTS, TOP_MODULES
from .export import ADAPTER_FORMATS, COMFYUI_PREFIX
from .file_kinds import is_native

Factors = tuple[Tensor, Tensor]
"""A [R, I] and B [O, R], with the scale in B."""

PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
TEXT_PREFIXES = ("lora_te", "text_encoder")
PART = re.compile(
    r"(.+)\.(?:(?P<A>lora_A|lora_down|lora\.down|lora_linear_layer\.down)|(?P<B>lora_B|lora_up|lora\.up|"
    r"lora_linear_layer\.up))(?:\.default)?\.weight|(.+)\.(?P<alpha>alpha)"
)
BLOCK = re.compile(r"(layers|noise_refiner|context_refiner)[._](\d+)[._](.+)")
PEFT_METADATA = "lora_adapter_metadata"
"""Where diffusers and SimpleTuner keep peft's settings in a file."""
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""peft's names of the weights and of the settings beside them."""


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _inner_layers() -> dict[str, tuple[str, int | None]]:
    """Layers of a block with underscores for dots, in all namings -> native layer, and 0, 1 or 2 for q, k or v."""
    layers: dict[str, tuple[str, int | None]] = {}
    for diffusers, native in MODULATED_MODULES.items():
        layers[_flat(diffusers)] = layers[_flat(native)] = (native, None)
    layers["attention_to_out_0"] = ("attention.out", None)
    layers["attention_qkv"] = ("attention.qkv", None)
    for index, part in enumerate(QKV_PARTS):
        layers[_flat(part)] = layers[_flat(part.replace("attn", "attention"))] = ("attention.qkv", index)
    return layers


INNER_LAYERS = _inner_layers()
TOP_LAYERS = {_flat(name): native for diffusers, native in TOP_MODULES.items() for name in (diffusers, native)}


@dataclass(kw_only=True)
class _Found:
    """What a file has for a layer."""

    key: str
    down_RI: Tensor | None = None
    up_OR: Tensor | None = None
    alpha: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoRAFile:
    """A file's content before it is understood."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    peft_settings: Mapping[str, Any] = field(default_factory=dict)
    """peft's, which say alpha where no tensor does."""


def read_lora_file(path: Path) -> LoRAFile:
    """Read a file, and peft's settings beside it if it is named as peft names it: others lie there too.

    Raises:
        TrainerError: It is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
        beside = path.with_name(PEFT_CONFIG)
        settings = {}
        if PEFT_METADATA in metadata:
            settings = json.loads(metadata[PEFT_METADATA])
        elif path.name == PEFT_FILE and beside.is_file():
            settings = json.loads(beside.read_text("utf-8"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise TrainerError(f"{path.name} cannot be read: {error}") from error
    settings = {name.removeprefix("transformer."): value for name, value in settings.items()}
    return LoRAFile(tensors=tensors, metadata=metadata, peft_settings=settings)


def read_foreign_lora(path: Path, transformer: nn.Module) -> dict[str, Factors]:
    """A and B of each native layer in a LoRA file.

    Raises:
        TrainerError: The file is no LoRA for Lumina2.
    """
    config = getattr(transformer, "config", None)
    return to_native_factors(read_lora_file(path), path.name, () if config is None else config.qkv_rows)


def to_native_factors(file: LoRAFile, name: str, qkv_rows: Sequence[int] = ()) -> dict[str, Factors]:
    """A and B of each native layer.

    q, k and v that share one A keep their rank; otherwise their A are stacked and their B put on the block diagonal.

    Args:
        file: Under any names.
        name: For messages.
        qkv_rows: Output rows of q, k and v, for files that adapt only some of them.

    Raises:
        TrainerError: Something in it is no LoRA for Lumina2.
    """
    layers: dict[str, dict[int | None, _Found]] = {}
    for key, tensor in file.tensors.items():
        native, index, part = _understand(key, name)
        found = layers.setdefault(native, {}).setdefault(index, _Found(key=key))
        if part == "alpha":
            found.alpha = tensor.item()
        elif part == "A":
            found.down_RI = tensor
        else:
            found.up_OR = tensor
    if not layers:
        raise TrainerError(f"{name} holds no weights")
    factors = {}
    for native, parts in layers.items():
        scaled = {index: _scaled(found, file.peft_settings, name) for index, found in parts.items()}
        if None in scaled and len(scaled) > 1:
            raise TrainerError(f"{name} has {native} both as one matrix and as q, k and v")
        factors[native] = scaled[None] if None in scaled else _fuse(native, scaled, qkv_rows, name)
    return factors


def _understand(key: str, name: str) -> tuple[str, int | None, str]:
    """Native layer, 0, 1 or 2 for q, k or v, and part of a key."""
    if key.startswith(TEXT_PREFIXES):
        raise TrainerError(f"{name} also adapts the text encoder ({key}), which is not trained here")
    match = PART.fullmatch(key)
    if match is None:
        raise TrainerError(f"{name} is not a plain LoRA: it has the key {key!r}")
    module = match[1] or match[4]
    part = next(part for part in ("A", "B", "alpha") if match[part])
    while prefix := next((prefix for prefix in PREFIXES if module.startswith(prefix)), ""):
        module = module.removeprefix(prefix)
    block = BLOCK.fullmatch(module)
    if block is None:
        native, index = TOP_LAYERS.get(_flat(module)), None
    else:
        inner, index = INNER_LAYERS.get(_flat(block[3]), (None, None))
        native = inner and f"{block[1]}.{block[2]}.{inner}"
    if native is None:
        raise TrainerError(f"{name} is not for Lumina2: {module!r} is not a layer of it")
    return native, index, part


def _scaled(found: _Found, peft_settings: Mapping[str, Any], name: str) -> Factors:
    down_RI, up_OR = found.down_RI, found.up_OR
    if down_RI is None or up_OR is None:
        raise TrainerError(f"{name} is incomplete: {found.key} has no counterpart")
    if down_RI.ndim != 2 or up_OR.ndim != 2 or len(down_RI) != up_OR.shape[1]:
        raise TrainerError(
            f"{name} is damaged: {found.key} belongs to matrices of {tuple(down_RI.shape)} and {tuple(up_OR.shape)}"
        )
    scale = _scale_of(found, len(down_RI), peft_settings)
    return down_RI, up_OR if scale == 1.0 else scale * up_OR.float()


def _scale_of(found: _Found, rank: int, peft_settings: Mapping[str, Any]) -> float:
    if found.alpha is not None:
        return found.alpha / rank
    alpha = peft_settings.get("lora_alpha")
    for pattern, value in (peft_settings.get("alpha_pattern") or {}).items():
        module = re.sub(r"\.lora_[AB].*", "", found.key)
        if re.fullmatch(rf"(.*\.)?({pattern})", module):  # as peft itself matches
            alpha = value
            break
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if peft_settings.get("use_rslora") else rank)


def _fuse(native: str, parts: Mapping[int | None, Factors], qkv_rows: Sequence[int], name: str) -> Factors:
    present = sorted(index for index in parts if index is not None)
    if present != [0, 1, 2] and not qkv_rows:
        raise TrainerError(f"{name} adapts only some of q, k and v of {native}, whose sizes it then does not tell")
    downs, ups = zip(*(parts[index] for index in present), strict=True)
    rows = [len(parts[index][1]) if index in parts else qkv_rows[index] for index in range(3)]
    starts = [sum(rows[:index]) for index in present]
    is_shared = all(down.shape == downs[0].shape and torch.equal(down, downs[0]) for down in downs)
    up_OR = ups[0].new_zeros(sum(rows), len(downs[0]) if is_shared else sum(map(len, downs)))
    column = 0
    for start, down, up in zip(starts, downs, ups, strict=True):
        up_OR[start : start + len(up), column : column + len(down)] = up
        column += 0 if is_shared else len(down)
    return downs[0] if is_shared else torch.cat(downs), up_OR


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
