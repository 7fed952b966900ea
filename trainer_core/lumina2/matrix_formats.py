"""How the matrices of the transformer's blocks are stored where that is not the dtype of the computation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .four_bit_linear import FourBitLinear
from .quant.compressed_linear import CompressedLinear
from .quantized_linear import QuantizedLinear

MATRIX_FORMATS: dict[torch.dtype, Callable[[Tensor, Tensor | None], CompressedLinear]] = {
    torch.float8_e4m3fn: partial(QuantizedLinear, dtype=torch.float8_e4m3fn),
    torch.int8: partial(QuantizedLinear, dtype=torch.int8),
    torch.uint8: FourBitLinear,
}
"""The layer made of a weight [O, I] and a bias, by the dtype of what is stored."""
