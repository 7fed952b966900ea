"""Cache entries: one safetensors file each, named by the hash of everything that decides its content.

They are written in other threads, so that neither the encoder nor the GPU waits for the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import TrainerError
from ..files import DTYPE_NAMES, write_safetensors_atomically
from .progress import Progress

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
                found.get_dtype() == DTYPE_NAMES[dtype]
                and len(sides) == len(shape)
                and all(side > 0 and wanted in (None, side) for side, wanted in zip(sides, shape, strict=True))
            )
    except (SafetensorError, OSError):
        return False


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


AUTOMATIC_BATCH_SIZE = 0
"""Leaves to the encoder how much is encoded at once: what is fastest and fits in memory."""
NUM_WRITERS = 4
"""Each file is flushed to the disk, which is mostly waiting."""
MAX_BATCHES_WAITING = 2
"""Encoded but not yet written; a crash costs these."""


@dataclass(frozen=True, kw_only=True)
class NewEntry:
    """An entry to be written, but for its tensor."""

    path: Path
    notes: tuple[str, ...] = ()
    """See `write_entry`."""
    problem: str
    """What to tell the user if the tensor is not finite."""


class EntryWriter:
    """Writes batches in the order they come, and counts them once they are on disk.

    Use it as a context: leaving it waits for every entry, also after an error of another part, so that no finished
    work is lost.
    """

    def __init__(self, dtype: torch.dtype, progress: Progress) -> None:
        """
        Args:
            dtype: In which entries are kept.
            progress: Advanced, in the caller's thread, by entries that are on disk.
        """
        self._dtype = dtype
        self._progress = progress
        self._pool = ThreadPoolExecutor(NUM_WRITERS, thread_name_prefix="entry-writer")
        self._waiting: deque[list[Future[None]]] = deque()

    def __enter__(self) -> EntryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown()

    def write(self, tensors: Sequence[Tensor], entries: Sequence[NewEntry]) -> None:
        """Start writing a batch; waits only while too many are under way.

        Args:
            tensors: On any device; must not be changed afterwards.
            entries: One for each tensor.

        Raises:
            TrainerError: A tensor of an earlier batch was not finite.
        """
        copy = _HostCopy(tensors, self._dtype)
        self._waiting.append([self._pool.submit(_write, copy, i, entry) for i, entry in enumerate(entries)])
        while len(self._waiting) > MAX_BATCHES_WAITING:
            self._finish_oldest()

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            TrainerError: A tensor was not finite.
        """
        while self._waiting:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        batch = self._waiting.popleft()
        for future in batch:
            future.result()
        self._progress.advance(len(batch))


class _HostCopy:
    """Tensors on their way to the host, as one block, without waiting for the device."""

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._shapes = [tensor.shape for tensor in tensors]
        flat = torch.cat([tensor.detach().to(dtype).flatten() for tensor in tensors])
        self._event: torch.cuda.Event | None = None
        if flat.is_cuda:
            self._flat = torch.empty(flat.shape, dtype=dtype, pin_memory=True)
            self._flat.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(flat.device))
        else:
            self._flat = flat.cpu()

    def __getitem__(self, index: int) -> Tensor:
        """One of the tensors, once it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._flat.split([shape.numel() for shape in self._shapes])[index].view(self._shapes[index])


def _write(copy: _HostCopy, index: int, entry: NewEntry) -> None:
    tensor = copy[index]
    if not tensor.isfinite().all():
        raise TrainerError(entry.problem)
    write_entry(entry.path, tensor, entry.notes)
