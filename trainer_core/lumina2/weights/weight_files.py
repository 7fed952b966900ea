"""Reads safetensors: the header first, then one tensor at a time.

This is done here rather than by safetensors' own loader because a file must be checked before any work, and because
that loader maps the whole file into memory, which counts as a second copy of a large model.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainerError
from ...files import DTYPE_NAMES

WEIGHT_DTYPES = {
    DTYPE_NAMES[dtype]: dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
}
"""What a weight may be stored as, by its name in a file."""
DTYPES = {**WEIGHT_DTYPES, DTYPE_NAMES[torch.uint8]: torch.uint8}

MAX_HEADER_SIZE = 100_000_000
"""Bytes; the format's own limit."""
FOLDER_STEMS = ("diffusion_pytorch_model", "model")
"""Names of the weights in a folder that diffusers or transformers wrote."""

SCALE_NAMES = (".scale_weight", ".weight_scale")
"""Factor of an fp8 weight, as ComfyUI wrote it until 0.3.x and writes it now."""
IGNORED_NAMES = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
"""What ComfyUI stores beside fp8 weights for its fp8 products and does not change the weight's value."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies."""

    path: Path
    dtype: str
    """As in the header, such as "BF16"."""
    shape: tuple[int, ...]
    start: int
    """Byte offset in the file."""
    num_bytes: int
    scale: TensorEntry | None = None
    """The number an fp8 weight is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The named tensors of one model, which may lie in several files."""

    path: Path
    """The file or folder they came from, for messages."""
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    def select(self, prefix: str) -> Weights:
        """Only the tensors whose name starts with a prefix, without it."""
        return replace(
            self, tensors={n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        )


def read_weights(path: Path) -> Weights:
    """Read the header of a safetensors file.

    Raises:
        TrainerError: The file is a pickle, no safetensors file, or cut short.
    """
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise TrainerError(
            f"{path.name} is a pickle, which can run code when it is read: use a .safetensors file of the same model"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        is_plausible = 0 < header_size <= min(size - 8, MAX_HEADER_SIZE)
        header = _parse_header(file.read(header_size)) if is_plausible else None
    if header is None:
        raise TrainerError(f"{path.name} is not a safetensors file ({size} bytes): choose another or download it again")
    metadata = header.pop("__metadata__", {})
    tensors = {name: _entry(path, 8 + header_size, fields) for name, fields in header.items()}
    expected_size = max((t.start + t.num_bytes for t in tensors.values()), default=8 + header_size)
    if size < expected_size:
        raise TrainerError(f"{path.name} is cut short: {size} of {expected_size} bytes; download it again")
    return Weights(path=path, tensors=_attach_scales(tensors), metadata=metadata)


def read_folder_weights(folder: Path) -> Weights:
    """Read the headers of a diffusers or transformers model folder, of one file or several with an index.

    Raises:
        TrainerError: There are no safetensors, or a file of the index is missing.
    """
    names = _list_weight_files(folder)
    tensors: dict[str, TensorEntry] = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise TrainerError(f"{folder}: its index names {name!r}, which is missing; download the model again")
        tensors.update(read_weights(folder / name).tensors)
    return Weights(path=folder, tensors=tensors, metadata={})


def _list_weight_files(folder: Path) -> list[str]:
    """The files of one variant: a folder may hold fp16 files beside the full ones."""
    for stem in FOLDER_STEMS:
        index_path = folder / f"{stem}.safetensors.index.json"
        if index_path.is_file():
            try:
                return sorted(set(json.loads(index_path.read_text("utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise TrainerError(f"{index_path} is damaged: download the model again") from None
        if (folder / f"{stem}.safetensors").is_file():
            return [f"{stem}.safetensors"]
    names = [path.name for path in folder.glob("*.safetensors")]
    if len(names) != 1:
        raise TrainerError(
            f"{folder} holds {len(names)} .safetensors files, none named {' or '.join(FOLDER_STEMS)}:"
            " download the model again in the format of diffusers"
        )
    return names


def read_tensor(entry: TensorEntry, file: BufferedReader) -> Tensor:
    """Read one tensor as it is stored, to the host's memory."""
    data = torch.empty(entry.num_bytes, dtype=torch.uint8)
    read_part(entry, file, data)
    return data.view(DTYPES[entry.dtype]).reshape(entry.shape)


def read_part(entry: TensorEntry, file: BufferedReader, data: Tensor, start: int = 0) -> None:
    """Read a stretch of a tensor's bytes.

    Args:
        entry: The tensor.
        file: `entry.path`, open.
        data: [bytes] uint8 on the host, filled whole.
        start: Of the stretch, in bytes from the tensor's first.
    """
    file.seek(entry.start + start)
    num_read = file.readinto(data.numpy().data) if len(data) else 0
    assert num_read == len(data), f"{entry.path} changed while it was read"


def read_bytes(entry: TensorEntry) -> bytes:
    """The content of a uint8 tensor, such as a SentencePiece file kept among weights."""
    with entry.path.open("rb") as file:
        return bytes(read_tensor(entry, file).numpy())


def _parse_header(data: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(data)
    except ValueError:  # neither UTF-8 nor JSON
        return None
    is_table = isinstance(header, dict) and all(
        name == "__metadata__" or (isinstance(fields, dict) and {"dtype", "shape", "data_offsets"} <= fields.keys())
        for name, fields in header.items()
    )
    return header if is_table else None


def _entry(path: Path, data_start: int, fields: Mapping[str, Any]) -> TensorEntry:
    start, end = fields["data_offsets"]
    shape = tuple(fields["shape"])
    dtype = fields["dtype"]
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - start:
        raise TrainerError(f"{path.name} is damaged: a tensor's shape and size disagree; download it again")
    return TensorEntry(path=path, dtype=dtype, shape=shape, start=data_start + start, num_bytes=end - start)


def _attach_scales(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Put the scale of each fp8 weight into its entry, and leave out what belongs to ComfyUI's fp8 products."""
    scales = {n.removesuffix(suffix): t for n, t in tensors.items() for suffix in SCALE_NAMES if n.endswith(suffix)}
    kept = {n: t for n, t in tensors.items() if not n.endswith((*SCALE_NAMES, *IGNORED_NAMES))}
    return {n: replace(t, scale=scales.get(n.removesuffix(".weight"))) for n, t in kept.items()}
