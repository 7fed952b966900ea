"""Cache entries: one safetensors file each, named by the hash of everything that decides its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import write_safetensors_atomically

TENSOR = "tensor"
ENTRY_SUFFIX = ".safetensors"


def entry_name(*parts: str | int) -> str:
    """File name of the entry that these facts decide."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest() + ENTRY_SUFFIX


def write_entry(path: Path, tensor: Tensor, notes: Sequence[str] = ()) -> None:
    """Write an entry, whole or not at all.

    Args:
        path: Folder and `entry_name`.
        tensor: Its content, in the dtype that is kept.
        notes: What to tell the user whenever the entry is used.
    """
    write_safetensors_atomically(path, {TENSOR: tensor}, {"entry": path.name, "notes": json.dumps(list(notes))})


def is_valid_entry(path: Path, shape: tuple[int | None, ...], dtype: torch.dtype) -> bool:
    """Whether a file is the whole entry its name says; a truncated, renamed or foreign file is not.

    Reads the header only, which safetensors checks against the file's length.

    Args:
        path: May be missing.
        shape: Expected shape, None for a side of any length.
        dtype: Expected dtype.
    """
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("entry") != path.name or TENSOR not in file.keys():  # noqa: SIM118
                return False
            found = file.get_slice(TENSOR)
            sides = found.get_shape()
            return (
                found.get_dtype() == SAFETENSORS_DTYPES[dtype]
                and len(sides) == len(shape)
                and all(side > 0 and wanted in (None, side) for side, wanted in zip(sides, shape, strict=True))
            )
    except (SafetensorError, OSError):
        return False


SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
"""The dtypes entries are kept in, as safetensors names them."""


def read_notes(path: Path) -> list[str]:
    """What was written with a valid entry for the user."""
    with safe_open(path, "pt") as file:
        return [str(note) for note in json.loads(file.metadata()["notes"])]


class UnreadableEntry(Exception):
    """An entry is missing or damaged."""


def read_entry(path: Path) -> Tensor:
    """An entry's tensor in float32 on the CPU.

    Raises:
        UnreadableEntry: It is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            # A copy, for safetensors maps the file: a mapped one may not be replaced on Windows, or shrink anywhere.
            return file.get_tensor(TENSOR).to(torch.float32, copy=True)
    except (SafetensorError, OSError) as error:
        raise UnreadableEntry(str(error)) from error
