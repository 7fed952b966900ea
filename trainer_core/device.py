"""The device that computes: its memory, what happens when that runs out, and torch's global state."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from .errors import TrainerError

logger = logging.getLogger(__name__)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory in use so far, in GiB: of the GPU's allocator, or of the process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def start_peak_memory(device: torch.device) -> None:
    """Count the GPU's peak from here, so that what ran before in this process is left out."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def available_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that this process could still take on a device, and all it has."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    host = psutil.virtual_memory()
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return min(total - torch.mps.driver_allocated_memory(), host.available), total
    return host.available, host.total


def free_memory(device: torch.device) -> None:
    """Give memory of models that are no longer referenced back to the device, and pinned memory to the computer."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # The function has a public name, torch.accelerator.empty_host_cache, only in later versions than 2.6.
        empty_host_cache = getattr(torch._C, "_host_emptyCache", None)
        if empty_host_cache is not None:
            empty_host_cache()


@contextmanager
def preserved_torch_state(device: torch.device) -> Iterator[None]:
    """Compute on a device, and restore random number generators, default dtype and determinism at the end.

    Triton starts kernels on the current CUDA device, wherever their tensors are, so it is this one within the context.

    The precision of matrix products is not touched here or in training: torch 2.14 refuses to tell it once another pack
    has used the newer of its two ways to set it.
    """
    default_dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    is_cuda = device.type == "cuda"
    try:
        with torch.random.fork_rng(devices=[device] if is_cuda else []), torch.cuda.device(device if is_cuda else -1):
            yield
    finally:
        torch.set_default_dtype(default_dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


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
    """Free what an error's calls held (models, and so their memory), and return the error."""
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
