"""Blocks whose frozen matrices live in host memory and visit the GPU while they are needed.

While one block computes, the next one's matrices are on their way, in the order forward 0, 1, ..., n and backward n,
..., 1, 0; the last blocks of a pass are still there when the next pass begins with them. Nothing is copied back, for
frozen matrices do not change. Everything else of a block, adapters among it, stays on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from .copy_stream import ALIGNMENT, CopyStream, Event, host_buffers
from .recompute import Pass

NUM_SLOTS = 2
"""Blocks on the GPU at once: one in use, one on its way. More do not help, as copies follow one another anyway."""


def swappable_tensors(block: nn.Module) -> list[Tensor]:
    """Frozen matrices of a block, those of 8 and 4 bits too."""
    return [x for x in chain(block.parameters(), block.buffers()) if x.ndim == 2 and not x.requires_grad]


@dataclass(kw_only=True, eq=False)
class _SwappedBlock:
    """Matrices that lie in one buffer, so that one copy moves them all."""

    tensors: list[Tensor]
    """Parameters and buffers of the block."""
    host: Tensor
    """[bytes]."""

    def point_to(self, buffer: Tensor) -> None:
        """Let the matrices be those in a buffer that is laid out as `host` is."""
        for tensor, view in zip(self.tensors, _views(self.tensors, buffer), strict=True):
            tensor.data = view


@dataclass(kw_only=True, eq=False)
class _Slot:
    """Room for a block on the GPU."""

    buffer: Tensor
    block: _SwappedBlock | None = None
    is_loaded: Event = None
    is_free: Event = None
    """Nothing computes with the content any more."""


class SwappedWeights:
    """See the module; given to `RecomputeBlocks`, which swapped blocks need."""

    is_capturable = False

    def __init__(self, blocks: Mapping[int, nn.Module], device: torch.device) -> None:
        """Move the blocks' matrices to host memory.

        Args:
            blocks: By number in order of execution; where their matrices are now does not matter.
            device: Where they are needed.

        Raises:
            TrainerError: There is not enough host memory.
        """
        self.indices = sorted(blocks)
        tensors = [swappable_tensors(blocks[index]) for index in self.indices]
        sizes = [_size(group) for group in tensors]
        self._blocks = [
            _SwappedBlock(tensors=group, host=host)
            for group, host in zip(tensors, host_buffers(sizes, device), strict=True)
        ]
        for block in self._blocks:
            for tensor, view in zip(block.tensors, _views(block.tensors, block.host), strict=True):
                view.copy_(tensor)
                tensor.data = view
        self._slots = [
            _Slot(buffer=torch.empty(max(sizes), dtype=torch.uint8, device=device))
            for _ in range(min(NUM_SLOTS, len(blocks)))
        ]
        self._way_in = CopyStream(device)

    @contextmanager
    def present(self, index: int, now: Pass) -> Iterator[None]:
        """The matrices of a block are on the device within this context.

        Args:
            index: The block's number; one that is not swapped is always there.
            now: Which pass needs it, which tells what will be needed next.
        """
        if index not in self.indices:
            yield
            return
        position = self.indices.index(index)
        block = self._blocks[position]
        upcoming = [self._blocks[p] for p in upcoming_positions(position, len(self._blocks), now, len(self._slots) - 1)]
        slot = self._slot_of(block) or self._load(block, [block, *upcoming])
        for other in upcoming:
            if self._slot_of(other) is None:
                self._load(other, [block, *upcoming])
        self._way_in.wait(slot.is_loaded)
        block.point_to(slot.buffer)
        try:
            yield
        finally:
            block.point_to(block.host)
            slot.is_free = self._way_in.mark()

    def _slot_of(self, block: _SwappedBlock) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block is block), None)

    def _load(self, block: _SwappedBlock, needed: list[_SwappedBlock]) -> _Slot:
        """Start to copy a block into a slot that holds none of those that are needed."""
        slot = next(slot for slot in self._slots if slot.block not in needed)
        slot.block = block
        slot.is_loaded = self._way_in.copy(slot.buffer[: len(block.host)], block.host, after=[slot.is_free])
        return slot


def upcoming_positions(position: int, length: int, now: Pass, count: int) -> list[int]:
    """Which others of a row of blocks are needed next, in order.

    Args:
        position: Of the block in use.
        length: Of the row.
        now: Passes alternate, forward and backward; without gradients one forward pass follows another.
        count: How many are wanted; there may be fewer.
    """
    forward, backward = list(range(length)), list(reversed(range(length)))
    cycle = forward if now == "inference" else forward + backward
    start = cycle.index(position) if now != "backward" else len(cycle) - 1 - position
    following = [*cycle[start + 1 :], *cycle[:start]]
    return [p for p in dict.fromkeys(following) if p != position][:count]


def _size(tensors: list[Tensor]) -> int:
    return sum(_aligned_size(tensor) for tensor in tensors)


def _aligned_size(tensor: Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    return size + -size % ALIGNMENT


def _views(tensors: list[Tensor], buffer: Tensor) -> Iterator[Tensor]:
    """Parts of a buffer of bytes, shaped as the tensors."""
    parts = buffer[: _size(tensors)].split([_aligned_size(tensor) for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        size = tensor.numel() * tensor.element_size()
        yield part[:size].view(tensor.dtype).view(tensor.shape)
