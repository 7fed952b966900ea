"""Writing files so that a reader or a crash never meets half of one, and deleting folders that may be in use."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in a safetensors header."""
COPY_BYTES = 2**24
"""Copied at once."""
RETRY_AFTER = (0.05, 0.1, 0.2, 0.4)
"""Seconds to wait for another program to close a file."""


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename."""
    with _replacing(path) as file:
        file.write(content)


def write_json_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON; keys keep their order."""
    write_bytes_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file that may be large."""
    with source.open("rb") as content, _replacing(target) as file:
        shutil.copyfileobj(content, file, COPY_BYTES)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder under a temporary name beside it, which takes its place in the end."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            _retry_while_open(lambda: shutil.rmtree(folder))
        _retry_while_open(lambda: temporary.rename(folder))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def delete_folders(folders: Iterable[Path]) -> None:
    """Delete them; what another program holds open stays for now, and is logged."""
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            logger.warning("%s cannot be deleted now: %s", folder, error)


def find_free_path(folder: Path, name: str, ending: str) -> Path:
    """A path that is not taken: a number is added to the name.

    Args:
        folder: It may be missing.
        name: A file name, see `settings.check_file_name`.
        ending: Such as ".safetensors"; empty for a folder.
    """
    number = 1
    while (path := folder / f"{name}_{number:05d}{ending}").exists():
        number += 1
    return path


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that is made only when it is written, so that a large file needs little memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Gives the tensor, on any device."""


def write_safetensors_atomically(
    path: Path, tensors: Mapping[str, Tensor | StoredTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors from any device, one after another: only one at a time is in the host's memory.

    Format: https://github.com/huggingface/safetensors#format
    """
    # Largest elements first, as safetensors itself does, so that every tensor lies at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            whole = tensor.read() if isinstance(tensor, StoredTensor) else tensor
            assert whole.dtype == tensor.dtype and tuple(whole.shape) == tuple(tensor.shape), "not what was announced"
            file.write(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name in the same folder; flushed to disk and renamed in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _retry_while_open(lambda: temporary.replace(path))
    finally:
        temporary.unlink(missing_ok=True)


def _retry_while_open(action: Callable[[], object]) -> None:
    """Do it once others have closed the file: Windows refuses to replace or delete what a program is reading."""
    for seconds in RETRY_AFTER:
        try:
            action()
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    action()
