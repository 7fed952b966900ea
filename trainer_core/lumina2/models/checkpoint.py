"""The transformer's weights: finding, checking and loading them in every layout users have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrainerError
from ..memory.block_swap import swappable_tensors
from ..network.transformer import Lumina2Config, Lumina2Transformer
from ..quant.precision import MATRIX_FORMATS
from ..weights.foreign_models import describe_foreign
from ..weights.module_weights import (
    Plan,
    check_names_and_shapes,
    check_storage,
    fill_parameters,
    parameter_shapes,
    set_parameter,
)
from ..weights.weight_files import TensorEntry, read_folder_weights, read_weights
from .name_map import to_native_module

ALL_IN_ONE_PREFIX = "model.diffusion_model."
AXES_DIMS_KEY = "lumina2_trainer.axes_dims"
"""Metadata of a safetensors file: JSON list of the head dimensions rotated by caption position, row and column."""
DIFFUSERS_CLASS = "Lumina2Transformer2DModel"
BLOCK_STACKS = ("layers", "noise_refiner", "context_refiner")
UNUSED = ("norm_final.weight",)
"""Older files carry it; nothing reads it."""

FOLDER_KINDS = (".safetensors", ".json", ".model")
WHOLE_FILE_LIMIT = 64 * 2**20
NUM_SAMPLED_CHUNKS = 64
CHUNK_SIZE = 64 * 2**10


def read_config(path: Path) -> Lumina2Config:
    """Check names and shapes of a base model, and tell its sizes, from the headers alone.

    Args:
        path: All-in-one or transformer `.safetensors`, or a diffusers folder.

    Raises:
        TrainerError: It is not a whole Lumina2 transformer.
    """
    return inspect_transformer(path)[0]


def load_transformer(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    matrix_dtype: torch.dtype | None = None,
    host_blocks: Collection[int] = (),
) -> Lumina2Transformer:
    """Load the transformer of a base model, frozen and in evaluation mode.

    Args:
        path: All-in-one or transformer `.safetensors`, or a diffusers folder.
        device: Where the weights go, one by one.
        dtype: What they are stored as there.
        matrix_dtype: What the blocks' matrices are stored as instead, see `Precision`. Each is quantised before the
            next is read.
        host_blocks: Numbers, in order of execution, of the blocks whose matrices go on to host memory one by one, see
            `SwappedWeights`.

    Raises:
        TrainerError: It is not a whole Lumina2 transformer.
    """
    config, plan = inspect_transformer(path)
    transformer = _on_meta(config)
    on_host = {transformer.blocks[number] for number in host_blocks}

    def place(network: nn.Module, name: str, weight: Tensor) -> None:
        place_weight(network, name, weight, matrix_dtype=matrix_dtype)
        stack, _, rest = name.partition(".")
        if stack in BLOCK_STACKS and network.get_submodule(f"{stack}.{rest.partition('.')[0]}") in on_host:
            for tensor in swappable_tensors(network.get_submodule(name.rpartition(".")[0])):
                tensor.data = tensor.data.cpu()

    fill_parameters(transformer, plan, device=device, dtype=dtype, place=place)
    return transformer.eval().requires_grad_(False)


def place_weight(transformer: nn.Module, name: str, weight: Tensor, *, matrix_dtype: torch.dtype | None) -> None:
    """Make a tensor the frozen parameter of that name; the matrix of a block stored as `matrix_dtype`."""
    is_block_matrix = name.split(".")[0] in BLOCK_STACKS and weight.ndim == 2
    if matrix_dtype is None or not is_block_matrix:
        set_parameter(transformer, name, weight)
        return
    owner, _, attribute = name.rpartition(".")[0].rpartition(".")
    parent = transformer.get_submodule(owner)
    bias = transformer.get_submodule(name.rpartition(".")[0]).bias
    setattr(parent, attribute, MATRIX_FORMATS[matrix_dtype](weight, bias))  # type: ignore[arg-type]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Identify the content of files and folders without reading large ones whole.

    Files up to 64 MiB are hashed whole; of a larger one the first 64 KiB, the size, and 64 chunks spread over it.

    Args:
        paths: In an order that matters; of a folder, every `.safetensors`, `.json` and `.model` file counts.

    Returns:
        64 hexadecimal digits.
    """
    ordered = list(paths)
    known = {path: _fingerprint_path(path) for path in dict.fromkeys(ordered)}
    return hashlib.sha256(b"".join(known[path] for path in ordered)).hexdigest()


def _fingerprint_path(path: Path) -> bytes:
    if not path.is_dir():
        return _fingerprint_file(path)
    files = sorted(p for p in path.rglob("*") if p.suffix in FOLDER_KINDS and p.is_file())
    digest = hashlib.sha256(json.dumps([p.relative_to(path).as_posix() for p in files]).encode())
    for file in files:
        digest.update(_fingerprint_file(file))
    return digest.digest()


def _fingerprint_file(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= WHOLE_FILE_LIMIT:
            digest.update(file.read())
        else:
            for i in range(NUM_SAMPLED_CHUNKS + 1):
                file.seek(i * (size - CHUNK_SIZE) // NUM_SAMPLED_CHUNKS)
                digest.update(file.read(CHUNK_SIZE))
    return digest.digest()


def inspect_transformer(path: Path) -> tuple[Lumina2Config, Plan]:
    """Sizes of a base model, and the stored tensors of each native parameter, checked from the headers alone.

    Raises:
        TrainerError: It is not a whole Lumina2 transformer.
    """
    plan, facts = _read_diffusers_plan(path) if path.is_dir() else _read_native_plan(path)
    plan = {name: entries for name, entries in plan.items() if name not in UNUSED}
    shapes = {name: _stacked_shape(entries) for name, entries in plan.items()}
    what = f"base {path.name}"
    config = _infer_config(what, shapes, facts)
    check_names_and_shapes(what, parameter_shapes(_on_meta(config)), shapes)
    check_storage(what, plan)
    return config, plan


def _on_meta(config: Lumina2Config) -> Lumina2Transformer:
    with torch.device("meta"):
        return Lumina2Transformer(config)


def _stacked_shape(entries: Sequence[TensorEntry]) -> tuple[int, ...]:
    return (sum(e.shape[0] for e in entries), *entries[0].shape[1:])


def _read_native_plan(path: Path) -> tuple[Plan, dict[str, Any]]:
    weights = read_weights(path)
    _refuse_foreign(path, weights.tensors)
    is_all_in_one = any(name.startswith(ALL_IN_ONE_PREFIX) for name in weights.tensors)
    inner = weights.select(ALL_IN_ONE_PREFIX if is_all_in_one else "")
    axes_dims = weights.metadata.get(AXES_DIMS_KEY)
    facts = {} if axes_dims is None else {"axes_dims": _parse_axes(path, axes_dims)}
    return {name: [entry] for name, entry in inner.tensors.items()}, facts


def _read_diffusers_plan(path: Path) -> tuple[Plan, dict[str, Any]]:
    folder = path / "transformer"
    if not (folder / "config.json").is_file():
        raise TrainerError(
            f"base {path.name} is a folder without transformer/config.json: choose a diffusers model folder"
        )
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("_class_name") != DIFFUSERS_CLASS:
        raise TrainerError(
            f"base {path.name} holds a {config.get('_class_name')}, not a {DIFFUSERS_CLASS}: choose a Lumina2 model"
        )
    weights = read_folder_weights(folder)
    plan: dict[str, dict[int, TensorEntry]] = {}
    for name, entry in weights.tensors.items():
        module, _, kind = name.rpartition(".")
        native, part = to_native_module(module) or (module, None)
        plan.setdefault(f"{native}.{kind}", {})[part or 0] = entry
    facts = {"axes_dims": tuple(config["axes_dim_rope"]), "norm_eps": config["norm_eps"]}
    return {name: [parts[i] for i in sorted(parts)] for name, parts in plan.items()}, facts


def _refuse_foreign(path: Path, names: Iterable[str]) -> None:
    foreign = describe_foreign(names)
    if foreign:
        raise TrainerError(f"base {path.name} is {foreign}, not a Lumina2 model: choose a Lumina2 file")


def _parse_axes(path: Path, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(dim) for dim in json.loads(text))
    except (ValueError, TypeError):
        raise TrainerError(
            f"base {path.name} has metadata {AXES_DIMS_KEY} = {text!r}: it must be a JSON list"
        ) from None


def _infer_config(what: str, shapes: Mapping[str, tuple[int, ...]], facts: dict[str, Any]) -> Lumina2Config:
    """Sizes from shapes; what no shape tells is in `facts`."""
    needed = {
        "x_embedder.weight": 2,
        "cap_embedder.1.weight": 2,
        "layers.0.attention.q_norm.weight": 1,
        "layers.0.attention.qkv.weight": 2,
        "layers.0.feed_forward.w1.weight": 2,
    }
    for name, num_dims in needed.items():
        if len(shapes.get(name, ())) != num_dims:
            raise TrainerError(f"{what} has no tensor {name} as Lumina2 has it: choose a Lumina2 file")
    hidden_size, patch_channels = shapes["x_embedder.weight"]
    head_size = shapes["layers.0.attention.q_norm.weight"][0]
    kv_rows = shapes["layers.0.attention.qkv.weight"][0] - hidden_size
    if head_size == 0 or hidden_size % head_size or kv_rows <= 0 or kv_rows % (2 * head_size):
        raise TrainerError(
            f"{what} has {hidden_size + kv_rows} rows in layers.0.attention.qkv.weight, which do not split into"
            f" heads of {head_size} at width {hidden_size}: it is another model"
        )
    return Lumina2Config(
        hidden_size=hidden_size,
        num_layers=_count_blocks(shapes, "layers"),
        num_refiner_layers=_count_blocks(shapes, "noise_refiner"),
        num_attention_heads=hidden_size // head_size,
        num_kv_heads=kv_rows // (2 * head_size),
        cap_feat_dim=shapes["cap_embedder.1.weight"][1],
        axes_dims=_check_axes(what, head_size, facts.get("axes_dims")),
        in_channels=patch_channels // 4,
        mlp_size=shapes["layers.0.feed_forward.w1.weight"][0],
        norm_eps=facts.get("norm_eps", 1e-5),
    )


def _count_blocks(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    parts = [name.split(".") for name in shapes if name.startswith(f"{stack}.")]
    return 1 + max((int(p[1]) for p in parts if p[1].isdigit()), default=-1)


def _check_axes(what: str, head_size: int, axes_dims: tuple[int, ...] | None) -> tuple[int, int, int]:
    if axes_dims is None:
        if head_size % 6:
            raise TrainerError(
                f"{what} has heads of {head_size}, which do not split into three equal even parts, and does not say"
                f" how its positions are encoded: add the metadata {AXES_DIMS_KEY}"
            )
        return (head_size // 3,) * 3
    if len(axes_dims) != 3 or sum(axes_dims) != head_size or any(dim <= 0 or dim % 2 for dim in axes_dims):
        raise TrainerError(
            f"{what} encodes positions in {list(axes_dims)}: three even numbers with the sum {head_size} are needed"
        )
    first, second, third = axes_dims
    return first, second, third
