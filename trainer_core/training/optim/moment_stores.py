"""Where 8-bit moments are kept: beside their parameter, or in host memory, from where they visit the device.

In host memory they cost the device a few buffers only. While one parameter is updated, the moments of the next ones
are on their way in and those of the last ones on their way out, on streams of their own.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

NUM_SLOTS = 4
"""Moments on the device at once: one in use, the others coming or going."""
MAX_SLAB = 2**29
"""Bytes of pinned memory taken at once; PyTorch rounds each request up to a power of two."""


class MomentStore(Protocol):
    """Gives out buffers of bytes, and their content on the device."""

    def create(self, size: int, device: torch.device) -> Tensor:
        """A buffer of zeros, uint8, for a parameter on this device."""

    def start_step(self) -> None:
        """Every buffer will be visited again, in about the order of the last step."""

    def visit(self, buffer: Tensor) -> AbstractContextManager[Tensor]:
        """The buffer's content where the parameter is; what is written there within the context is kept."""

    def synchronize(self) -> None:
        """Wait until every buffer holds what was written."""


class ResidentMoments:
    """Beside the parameter."""

    def create(self, size: int, device: torch.device) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=device)

    def start_step(self) -> None:
        pass

    def visit(self, buffer: Tensor) -> AbstractContextManager[Tensor]:
        return nullcontext(buffer)

    def synchronize(self) -> None:
        pass


@dataclass(kw_only=True)
class _Slot:
    """Room on the device for the moments of one parameter."""

    data: Tensor
    is_loaded: Any = None
    """Event: the content has come."""
    is_free: Any = None
    """Event: the last content has gone."""


class HostMoments:
    """In pinned host memory."""

    def __init__(self, sizes: list[int], device: torch.device) -> None:
        """
        Args:
            sizes: Bytes of every buffer there will be.
            device: Where the parameters are.
        """
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._slab_size = min(MAX_SLAB, 1 << (sum(sizes) - 1).bit_length())
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._free = deque(
            _Slot(data=torch.empty(max(sizes), dtype=torch.uint8, device=device)) for _ in range(NUM_SLOTS)
        )
        self._loaded: OrderedDict[int, _Slot] = OrderedDict()
        """By address of the buffer: loaded ahead and not visited yet."""
        self._order: list[Tensor] = []
        """Buffers as the last step visited them."""
        self._next = 0
        """Position in `_order` of what is loaded ahead next."""
        self._visited: dict[int, Tensor] = {}
        """By address, in this step."""
        if self._is_cuda:
            self._way_in, self._way_out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def create(self, size: int, device: torch.device) -> Tensor:
        assert device == self._device, f"made for {self._device}, asked for {device}"
        if size > len(self._slab):
            self._slab = torch.zeros(max(size, self._slab_size), dtype=torch.uint8, pin_memory=self._is_cuda)
        buffer, self._slab = self._slab[:size], self._slab[size + -size % 64 :]
        return buffer

    def start_step(self) -> None:
        if self._visited:
            self._order = list(self._visited.values())
        self._visited, self._next = {}, 0
        self._free.extend(self._loaded.values())  # of a step that was broken off
        self._loaded.clear()
        if self._is_cuda:
            self._way_in.wait_stream(self._way_out)
        self._load_ahead()

    @contextmanager
    def visit(self, buffer: Tensor) -> Iterator[Tensor]:
        slot = self._loaded.pop(buffer.data_ptr(), None) or self._load(buffer)
        content = slot.data[: buffer.numel()]
        if self._is_cuda:
            torch.cuda.current_stream(self._device).wait_event(slot.is_loaded)
        yield content
        if self._is_cuda:
            self._way_out.wait_stream(torch.cuda.current_stream(self._device))
        with self._on(self._way_out if self._is_cuda else None):
            buffer.copy_(content, non_blocking=True)
            slot.is_free = self._mark(self._way_out if self._is_cuda else None)
        self._free.append(slot)
        self._visited[buffer.data_ptr()] = buffer
        self._load_ahead()

    def synchronize(self) -> None:
        if self._is_cuda:
            self._way_out.synchronize()

    def _load_ahead(self) -> None:
        while self._free and self._next < len(self._order):
            buffer = self._order[self._next]
            self._next += 1
            address = buffer.data_ptr()
            if address not in self._visited and address not in self._loaded:
                self._loaded[address] = self._load(buffer)

    def _load(self, buffer: Tensor) -> _Slot:
        if self._free:
            slot = self._free.popleft()
        else:  # the order has changed: give up what was loaded first, it has not been written to
            _, slot = self._loaded.popitem(last=False)
        way = self._way_in if self._is_cuda else None
        with self._on(way):
            if slot.is_free is not None and way is not None:
                way.wait_event(slot.is_free)
            slot.data[: buffer.numel()].copy_(buffer, non_blocking=True)
            slot.is_loaded = self._mark(way)
        return slot

    def _on(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _mark(self, stream: Any) -> Any:
        return None if stream is None else stream.record_event()
