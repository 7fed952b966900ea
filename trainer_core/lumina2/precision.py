"""Precision of the frozen base and of the computation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""The dtype of the base by name; adapters are float32 always."""


def computation(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which the network runs: autocast below float32, so that float32 adapters compute in the base's dtype.

    Args:
        precision: Key of PRECISIONS.
        device: Where the network is.
    """
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)
