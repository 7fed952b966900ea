"""Inputs of recomputed blocks in host memory: they leave in the forward pass and come back for the backward pass.

Shape suffixes: S tokens, D width.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from .copy_stream import CopyStream, Event, host_buffers


@dataclass(kw_only=True, eq=False)
class StoredInput:
    """A block's input; held by the graph that will ask for it."""

    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool
    host: Tensor
    """[bytes]."""
    is_stored: Event


class OffloadedInputs:
    """Keeps the inputs of the first blocks; given to `RecomputeBlocks`."""

    is_capturable = False

    def __init__(self, num_offloaded: int, num_bytes: int, device: torch.device) -> None:
        """
        Args:
            num_offloaded: How many blocks, the first ones. The last block of all should not be one: the backward pass
                begins with it.
            num_bytes: Of the largest input there will be; larger ones stay on the GPU.
            device: Where the blocks are.

        Raises:
            TrainerError: There is not enough host memory.
        """
        self._device = device
        self._buffers = host_buffers([num_bytes] * num_offloaded, device)
        self._owners: list[weakref.ref[StoredInput] | None] = [None] * num_offloaded
        self._way_out, self._way_in = CopyStream(device), CopyStream(device)
        self._leaving: tuple[Tensor, Event] | None = None
        """The input that is copied now must not be freed yet."""
        self._stored: list[weakref.ref[StoredInput]] = []
        """In the order of the forward pass; the backward pass wants the last one first."""
        self._arriving: dict[StoredInput, tuple[Tensor, Event]] = {}

    def store(self, index: int, x_SD: Tensor) -> StoredInput | None:
        """Begin to copy a block's input to host memory; None if it shall stay where it is.

        Args:
            index: The block's number in order of execution; every block must be announced.
            x_SD: On the device.
        """
        self._let_go()
        if index >= len(self._buffers) or x_SD.nbytes > len(self._buffers[index]) or self._is_in_use(index):
            return None
        host = self._buffers[index][: x_SD.nbytes]
        flat = x_SD.detach().contiguous().view(-1).view(torch.uint8)
        is_stored = self._way_out.copy(host, flat, after=[self._way_out.mark()])
        stored = StoredInput(
            shape=x_SD.shape, dtype=x_SD.dtype, requires_grad=x_SD.requires_grad, host=host, is_stored=is_stored
        )
        self._leaving = (flat, is_stored)
        self._owners[index] = weakref.ref(stored)
        self._stored.append(weakref.ref(stored))
        return stored

    def fetch(self, stored: StoredInput) -> Tensor:
        """The input on the device again, and the one that will be asked for next on its way."""
        x_SD, is_loaded = self._arriving.pop(stored) if stored in self._arriving else self._load(stored)
        self._stored = [reference for reference in self._stored if reference() not in (None, stored)]
        self._owners = [None if owner is None or owner() is stored else owner for owner in self._owners]
        self.load_ahead()
        self._way_in.wait(is_loaded)
        return x_SD.requires_grad_(stored.requires_grad)

    def load_ahead(self) -> None:
        """Begin to copy the input that will be asked for next back to the device."""
        following = self._stored[-1]() if self._stored else None
        if following in self._arriving:
            return
        for _, is_loaded in self._arriving.values():  # of a backward pass that was broken off
            self._way_in.wait(is_loaded)
        self._arriving = {} if following is None else {following: self._load(following)}

    def _is_in_use(self, index: int) -> bool:
        owner = self._owners[index]
        return owner is not None and owner() is not None

    def _let_go(self) -> None:
        """Free the input that was leaving: what computes from here on waits until it is gone, if it is not yet."""
        if self._leaving is not None:
            self._way_out.wait(self._leaving[1])
            self._leaving = None

    def _load(self, stored: StoredInput) -> tuple[Tensor, Event]:
        x_SD = torch.empty(stored.shape, dtype=stored.dtype, device=self._device)
        flat = x_SD.view(-1).view(torch.uint8)
        # The memory of x_SD may have been freed by something that is still to be computed.
        return x_SD, self._way_in.copy(flat, stored.host, after=[stored.is_stored, self._way_in.mark()])
