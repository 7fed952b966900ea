"""Precision of the frozen base and of the computation, and the layers that hold matrices of few bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import TrainerError
from .compressed_linear import CompressedLinear
from .eight_bit import QuantizedLinear
from .four_bit import FourBitLinear


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a model is stored and computed."""

    dtype: torch.dtype
    """Of the computation, and of everything stored but the matrices of the transformer's blocks."""
    matrix_dtype: torch.dtype | None = None
    """Of those matrices, a key of MATRIX_FORMATS: float8_e4m3fn or int8, or uint8 for pairs of 4-bit numbers; None
    stores them as the rest."""


PRECISIONS: dict[str, Precision] = {
    "bf16": Precision(dtype=torch.bfloat16),
    "fp32": Precision(dtype=torch.float32),
    "fp8": Precision(dtype=torch.bfloat16, matrix_dtype=torch.float8_e4m3fn),
    "int8": Precision(dtype=torch.bfloat16, matrix_dtype=torch.int8),
    "nf4": Precision(dtype=torch.bfloat16, matrix_dtype=torch.uint8),
}
"""By name; adapters are float32 always."""


def computation(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which the network runs: autocast below float32, so that float32 adapters compute as the base does.

    Args:
        precision: Key of PRECISIONS.
        device: Where the network is.
    """
    dtype = PRECISIONS[precision].dtype
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def check_device(precision: str, device: torch.device) -> None:
    """Refuse what a device cannot even store.

    Raises:
        TrainerError: Apple's GPUs know no fp8.
    """
    if device.type == "mps" and PRECISIONS[precision].matrix_dtype == torch.float8_e4m3fn:
        raise TrainerError(f"precision is {precision}, which Apple's GPUs do not have: choose int8, nf4 or bf16")


MATRIX_FORMATS: dict[torch.dtype, Callable[[Tensor, Tensor | None], CompressedLinear]] = {
    torch.float8_e4m3fn: partial(QuantizedLinear, dtype=torch.float8_e4m3fn),
    torch.int8: partial(QuantizedLinear, dtype=torch.int8),
    torch.uint8: FourBitLinear,
}
"""The layer made of a weight [O, I] and a bias, by the dtype in which matrices of the transformer's blocks are stored,
where that is not the dtype of the computation."""
