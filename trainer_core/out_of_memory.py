"""Says which settings to change when memory runs out, in place of a traceback."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .errors import TrainerError

logger = logging.getLogger(__name__)

CPU_ALLOCATOR = "DefaultCPUAllocator"
"""In the message of the plain RuntimeError that a CPU without memory ends in."""


class OutOfMemoryError(TrainerError):
    """Memory ran out, which no check before had foreseen."""


@contextmanager
def explained_out_of_memory(work: str, remedies: Sequence[str]) -> Iterator[None]:
    """Turn running out of memory into one sentence; other errors pass.

    Args:
        work: What is done, as in "training".
        remedies: What may be changed, each as in "lower batch_size"; closing other programs is added.

    Raises:
        OutOfMemoryError: Memory ran out. What the failed calls held is free again.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        logger.debug("Out of memory", exc_info=error)
        traceback.clear_frames(error.__traceback__)
        said = str(error).partition("\n")[0]
        options = [*remedies, "close what else uses the memory"]
        sentence = f"{work} ran out of memory: {', '.join(options[:-1])}, or {options[-1]}"
        raise OutOfMemoryError(f"{sentence}\n{said}") from None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_ALLOCATOR in str(error)
