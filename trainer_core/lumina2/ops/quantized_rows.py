"""A matrix of 8-bit numbers with a scale for each row: what kernels make and products take.

Shape suffixes: S tokens, I inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class QuantizedRows(NamedTuple):
    """diag(scale) values."""

    values_SI: Tensor
    """float8_e4m3fn or int8."""
    scale_S1: Tensor
    """float32."""
    dtype: torch.dtype
    """Of what was quantised, and of products with it."""


def largest_magnitude(dtype: torch.dtype) -> float:
    """448 for float8_e4m3fn, 127 for int8."""
    return float(torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max)
