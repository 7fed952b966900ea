"""How much memory a run takes."""

from __future__ import annotations

import gc
import sys

import psutil
import torch


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
