"""Recognises that memory ran out, and says which settings to change in place of a traceback."""

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
SURE_SIGNS = ("out of memory", "cudaErrorMemoryAllocation", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""In messages of RuntimeErrors of drivers and libraries, whatever the allocator."""
UNSURE_SIGNS = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED",
)
"""What cuBLAS and cuDNN say when they get no workspace or cannot load their kernels, but also of other faults."""
FULL_BYTES = 2**29
"""A GPU with less than this free is too full for a library to work."""


class OutOfMemoryError(TrainerError):
    """Memory ran out, which no check before had foreseen."""

    def __init__(self, message: str, *, is_of_device: bool) -> None:
        """
        Args:
            message: See `TrainerError`.
            is_of_device: The device's memory ran out, not the computer's beside it.
        """
        super().__init__(message)
        self.is_of_device = is_of_device


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
        if not is_out_of_memory(error):
            raise
        logger.debug("Out of memory", exc_info=error)
        is_of_device = not (isinstance(error, MemoryError) or CPU_ALLOCATOR in str(error))
        traceback.clear_frames(error.__traceback__)
        said = str(error).partition("\n")[0]
        options = [*remedies, "close what else uses the memory"]
        sentence = f"{work} ran out of memory: {', '.join(options[:-1])}, or {options[-1]}"
        raise OutOfMemoryError(f"{sentence}\n{said}", is_of_device=is_of_device) from None


def without_frames(error: OutOfMemoryError) -> OutOfMemoryError:
    """The same error, which no longer keeps alive what its calls held: models, and so their memory."""
    part: BaseException | None = error
    while part is not None:
        traceback.clear_frames(part.__traceback__)
        part.__traceback__ = None
        part = part.__context__
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, or must be taken to mean, that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    if CPU_ALLOCATOR in text or any(sign.lower() in text.lower() for sign in SURE_SIGNS):
        return True
    return any(sign in text for sign in UNSURE_SIGNS) and _is_gpu_full()


def _is_gpu_full() -> bool:
    return torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < FULL_BYTES
