"""Reads stored weights into tensors of any device and dtype, a chunk at a time, so that no second copy is held."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor

from .weight_files import DTYPES, TensorEntry, read_part, read_tensor

CHUNK_BYTES = 32 * 2**20
"""Read at once where the stored weight cannot go straight into its place: large enough for any disk's full speed."""
NUM_BUFFERS = 2
"""One is read into while the other is copied to the GPU."""


class WeightReader:
    """Open files and the buffers that their weights pass through.

    On a CPU, a weight that keeps its dtype is read straight into its place. Everything else passes through two buffers
    of CHUNK_BYTES, which are pinned for a GPU: it copies from one while the disk fills the other.
    """

    def __init__(self, entries: Iterable[TensorEntry]) -> None:
        """
        Args:
            entries: What will be read; decides the files that are opened.
        """
        stored = list(entries)
        paths = {entry.path for entry in (*stored, *(e.scale for e in stored if e.scale is not None))}
        with ExitStack() as stack:
            self._files = {path: stack.enter_context(path.open("rb")) for path in paths}
            self._stack = stack.pop_all()
        self._buffers: dict[torch.device, Iterator[_Buffer]] = {}

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def read_new(self, entry: TensorEntry, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A stored weight as a tensor of its own."""
        weight = torch.empty(entry.shape, device=device, dtype=dtype)
        self.read(entry, weight)
        return weight

    def read(self, entry: TensorEntry, target: Tensor) -> None:
        """Fill a tensor with a stored weight.

        Args:
            entry: One of those given at the start.
            target: As many elements, contiguous, in any floating dtype on any device.
        """
        stored_dtype, flat = DTYPES[entry.dtype], target.view(-1)
        if target.device.type == "cpu" and target.dtype == stored_dtype and entry.scale is None:
            read_part(entry, self._files[entry.path], flat.view(torch.uint8))
            return
        scale = None
        if entry.scale is not None:
            scale = read_tensor(entry.scale, self._files[entry.scale.path]).to(target.device).float()
        chunk_length = CHUNK_BYTES // stored_dtype.itemsize
        buffers = self._buffers.setdefault(target.device, _cycle_buffers(target.device))
        for number, part in enumerate(flat.split(chunk_length)):
            buffer = next(buffers)
            data = buffer.take(part.numel() * stored_dtype.itemsize)
            read_part(entry, self._files[entry.path], data, number * CHUNK_BYTES)
            _convert(data.view(stored_dtype), scale, part)
            buffer.release()


class _Buffer:
    """Host memory that must not be written to before the GPU has read it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._data = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._copied: torch.cuda.Event | None = None

    def take(self, num_bytes: int) -> Tensor:
        """The first bytes, once nobody reads them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._data[:num_bytes]

    def release(self) -> None:
        """Everything that reads the bytes has been asked for."""
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self._device))


def _cycle_buffers(device: torch.device) -> Iterator[_Buffer]:
    """The buffers in turn, made when they are first needed."""
    buffers: list[_Buffer] = []
    while len(buffers) < NUM_BUFFERS:
        buffers.append(_Buffer(device))
        yield buffers[-1]
    while True:
        yield from buffers


def _convert(stored: Tensor, scale: Tensor | None, target: Tensor) -> None:
    """Copy a chunk to its place; the device converts, except that Apple's GPUs know no fp8."""
    if target.device.type == "mps" and stored.dtype.itemsize == 1:
        stored = stored.to(target.dtype)
    if scale is None and stored.dtype == target.dtype:
        target.copy_(stored, non_blocking=target.is_cuda)
        return
    on_device = stored.to(target.device, non_blocking=target.is_cuda)
    target.copy_(on_device if scale is None else on_device.float() * scale)


ASKED_AT_ONCE = 2**24
"""Bytes."""


def read_ahead(entries: Iterable[TensorEntry]) -> threading.Thread | None:
    """Ask for tensors that will soon be read, in a thread, for asking waits where the disk has much to do.

    Before the weights of a run are read, its libraries are imported, which takes 3 to 4 s. With 5.2 GB on a cold disk
    of 0.75 GB/s both took 11.2 s one after the other, and 8.0 s like this.

    Returns:
        The thread, which need not be waited for; None on systems that cannot be asked (Windows, macOS).
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    ordered = sorted(entries, key=lambda entry: (entry.path, entry.start))
    thread = threading.Thread(target=_ask_for, args=(ordered,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _ask_for(entries: Sequence[TensorEntry]) -> None:
    try:
        for path, of_one_file in itertools.groupby(entries, key=lambda entry: entry.path):
            with path.open("rb") as file:
                for entry in of_one_file:
                    end = entry.start + entry.num_bytes
                    for start in range(entry.start, end, ASKED_AT_ONCE):
                        size = min(ASKED_AT_ONCE, end - start)
                        os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass  # who reads the file will say what is wrong with it
