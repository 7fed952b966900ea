"""Leaving torch's global state as it was: inference shares the process with training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
