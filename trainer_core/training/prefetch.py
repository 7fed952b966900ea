"""Builds the next batch in another thread while the GPU works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """Gives batches by position, and has the one that follows built meanwhile.

    One batch is built ahead at most. An error of the other thread is raised where its batch is asked for. The thread
    ends when this object is no longer referenced, for it holds nothing but `build`.
    """

    def __init__(self, build: Callable[[int], Batch], *, stride: int, end: int, is_threaded: bool) -> None:
        """
        Args:
            build: Makes the batch of a position, the same in any thread.
            stride: From one batch's position to the next one's.
            end: Nothing is built ahead from here on.
            is_threaded: Whether to build ahead at all; otherwise batches are built when they are asked for.
        """
        self._build = build
        self._stride = stride
        self._end = end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batch-builder") if is_threaded else None
        self._ahead: dict[int, Future[Batch]] = {}

    def take(self, position: int) -> Batch:
        """The batch of a position, wherever the last one was."""
        ahead = self._ahead.pop(position, None)
        self._drop_ahead()
        batch = self._build(position) if ahead is None else ahead.result()
        following = position + self._stride
        if self._pool is not None and following < self._end:
            self._ahead[following] = self._pool.submit(self._build, following)
        return batch

    def _drop_ahead(self) -> None:
        """Forget batches that nobody asked for, as after a jump to another position."""
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()
