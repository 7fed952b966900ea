"""Copies between the computer's memory and a GPU beside the computation, ordered by events; plain copies on a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainerError

MAX_SLAB = 2**29
"""Bytes of pinned memory taken at once. PyTorch rounds each request up to a power of two; blocks of Lumina2 fill this
one to 98%."""
ALIGNMENT = 256

Event = Any
"""Of CUDA; None on a CPU, where everything happens in order."""


class CopyStream:
    """A stream of its own for copies in one direction."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:  # what is copied to must not be given away before the last copy is done
            weakref.finalize(self, self._stream.synchronize).atexit = False

    def copy(self, target: Tensor, source: Tensor, *, after: Sequence[Event]) -> Event:
        """Start a copy, and return the event of its end.

        Args:
            target: Pinned if it is in host memory.
            source: Likewise.
            after: Events that must have happened before.
        """
        if self._stream is None:
            target.copy_(source)
            return None
        for event in after:
            if event is not None:
                self._stream.wait_event(event)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def mark(self) -> Event:
        """The event that everything asked of the GPU so far is done."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    def wait(self, event: Event) -> None:
        """Let the computation go on only after an event; does not hold up Python."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)


def host_buffers(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Buffers of bytes in host memory, pinned if a GPU shall copy them.

    Args:
        sizes: Bytes of each.
        device: What they are copied to and from.

    Raises:
        TrainerError: The system does not let so much memory be pinned.
    """
    buffers: list[Tensor] = []
    slab = torch.empty(0, dtype=torch.uint8)
    for i, size in enumerate(sizes):
        if size > len(slab):
            slab = _pinned(_slab_size(sizes[i:]), device)
        buffers.append(slab[:size])
        slab = slab[size + -size % ALIGNMENT :]
    return buffers


def _slab_size(sizes: Sequence[int]) -> int:
    """Room for the next buffers up to MAX_SLAB, for one at least."""
    total = 0
    for size in sizes:
        aligned = size + -size % ALIGNMENT
        if total and total + aligned > MAX_SLAB:
            break
        total += aligned
    return total


def _pinned(size: int, device: torch.device) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    except RuntimeError as error:
        raise TrainerError(
            f"{size / 2**30:.1f} GiB of the computer's memory could not be reserved for copies to the GPU: close other"
            " programs, or raise memory so that more stays on the GPU"
        ) from error
