"""Numbers of 8 bits: quantising weights, products of quantised matrices, and the Linear layer made of both.

Shape suffixes: S tokens, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from ..ops.ops import has_triton
from ..ops.quantized_rows import QuantizedRows, largest_magnitude
from .compressed_linear import CompressedLinear

logger = logging.getLogger(__name__)

MIN_ROWS = 32
"""Fewer rows than this are not worth quantising: the product waits for the weight to be read either way."""
ALIGNMENT = 16
"""Both sides of an 8-bit weight must be multiples of this for the tensor cores."""
MIN_CAPABILITY = {torch.int8: (8, 0), torch.float8_e4m3fn: (8, 9)}
"""First CUDA architecture with 8-bit products that pay: Ampere for int8, Ada for fp8."""
QUANTIZED_AT_ONCE = 2**21
"""Elements of a weight that are float32 at a time."""
SMALLEST_SCALE = 1e-12


@torch.no_grad()
def quantize_weight(weight_OI: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise row by row; the numbers are the same on every device.

    The scales of fp8 are powers of two. That costs nothing, as floating point is as fine at every magnitude, and a
    weight that has passed through fp8 before stays exactly what it was.

    Args:
        weight_OI: Floating point.
        dtype: float8_e4m3fn or int8.

    Returns:
        [O, I] in dtype, and the [O] float32 scale of each row.
    """
    weight_8 = torch.empty_like(weight_OI, dtype=dtype)
    scale_O = torch.empty(len(weight_OI), dtype=torch.float32, device=weight_OI.device)
    num_rows = max(QUANTIZED_AT_ONCE // weight_OI.shape[1], 1)
    parts = zip(weight_OI.split(num_rows), weight_8.split(num_rows), scale_O.split(num_rows), strict=True)
    for rows, rows_8, scale in parts:
        rows = rows.float()
        # By a tensor: CUDA multiplies with the rounded inverse of a plain number.
        scale.copy_(rows.abs().amax(1).clamp_(min=SMALLEST_SCALE) / torch.full_like(scale, largest_magnitude(dtype)))
        if dtype.is_floating_point:
            scale.copy_(_round_up_to_power_of_two(scale))
        rows = rows / scale[:, None]
        rows_8.copy_(rows if dtype.is_floating_point else rows.round_())
    return weight_8, scale_O


def _round_up_to_power_of_two(x: Tensor) -> Tensor:
    """Of normal positive float32 numbers: mantissas other than zero carry into the exponent, then vanish."""
    return ((x.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def multiply(a: QuantizedRows, b8: Tensor, b_scale: Tensor | None) -> Tensor:
    """a b8 diag(b_scale) in a's dtype, [S, O]; b8 is the transposed view of a contiguous matrix."""
    if b8.dtype == torch.int8:
        from ..ops.kernels.quantize import rescale

        return rescale(torch._int_mm(a.values_SI, b8), a.scale_S1, b_scale, a.dtype)
    ones = torch.ones(1, b8.shape[1], device=b8.device) if b_scale is None else b_scale[None]
    return torch._scaled_mm(a.values_SI, b8, scale_a=a.scale_S1, scale_b=ones, out_dtype=a.dtype, use_fast_accum=True)


@functools.cache
def has_8_bit_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrices of this dtype are multiplied as they are; if not, the log says why.

    What a GPU can do also depends on the version of PyTorch, so a small product is tried.
    """
    reason = _missing_for_products(device, dtype)
    if reason:
        name = str(dtype).removeprefix("torch.")
        logger.warning("Weights are stored as %s but multiplied in 16 bits, which is slower: %s", name, reason)
    return not reason


def _missing_for_products(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cuda":
        return f"{device.type} has no products of 8-bit matrices"
    if not has_triton():
        return "triton is not installed (on Windows: pip install triton-windows)"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY[dtype]:
        return f"{torch.cuda.get_device_name(device)} has no products of such matrices"
    ones = torch.ones(MIN_ROWS, ALIGNMENT, device=device)
    scale = torch.ones(MIN_ROWS, 1, device=device)
    try:
        multiply(QuantizedRows(ones.to(dtype), scale, torch.bfloat16), ones.to(dtype).t(), scale[:, 0])
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


class QuantizedLinear(CompressedLinear):
    """A frozen Linear layer with 8-bit weights, whose products run in 8 bits where the GPU has them.

        W = diag(weight_scale) W8,   x = diag(x_scale) x8,   x W^T = diag(x_scale) (x8 W8^T) diag(weight_scale)

    Inputs are quantised row by row as they come. The backward pass needs W, not W^T: its scales are multiplied into the
    incoming gradient before that is quantised, so one stored copy of the weight serves both. Few rows, and all rows on
    a GPU without such products, are multiplied in the input's dtype, which holds every number of 8 bits exactly.
    """

    weight_8: Tensor
    """[O, I], float8_e4m3fn or int8."""
    weight_scale: Tensor
    """[O] float32."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        """Quantise a weight on its device.

        Args:
            weight_OI: Floating point; `weight` will give its dtype back.
            bias_O: Kept as it is.
            dtype: float8_e4m3fn or int8.
        """
        super().__init__(weight_OI, bias_O)
        weight_8, weight_scale = quantize_weight(weight_OI, dtype)
        self.weight_8 = nn.Parameter(weight_8, requires_grad=False)
        self.register_buffer("weight_scale", weight_scale)

    @property
    def stored_device(self) -> torch.device:
        return self.weight_8.device

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return (self.weight_8.float() * self.weight_scale.to(self.weight_8.device)[:, None]).to(dtype)

    def is_8_bit(self, x: Tensor) -> bool:
        """Whether the product with x, or of a gradient like it, is one of 8-bit matrices."""
        is_aligned = self.in_features % ALIGNMENT == 0 and self.out_features % ALIGNMENT == 0
        is_large = is_aligned and len(x) >= MIN_ROWS and x.dtype == torch.bfloat16
        return is_large and has_8_bit_products(x.device, self.weight_8.dtype)

    def product(self, x_SI: Tensor | QuantizedRows) -> Tensor:
        if isinstance(x_SI, Tensor) and self.is_8_bit(x_SI):
            from ..ops.kernels.quantize import quantize_rows

            x_SI = quantize_rows(x_SI, self.weight_8.dtype)
        if isinstance(x_SI, QuantizedRows):
            out_SO = multiply(x_SI, self.weight_8.t(), self.weight_scale)
        else:
            out_SO = (x_SI @ self.weight_8.to(x_SI.dtype).t()).mul_(self.weight_scale)
        return out_SO if self.bias is None else out_SO.add_(self.bias)

    def input_gradient(self, grad_SO: Tensor) -> Tensor:
        if not self.is_8_bit(grad_SO):
            return (grad_SO * self.weight_scale).to(grad_SO.dtype) @ self.weight_8.to(grad_SO.dtype)
        from ..ops.kernels.quantize import quantize_rows, transpose

        # The tensor cores of Hopper read 8-bit matrices along the summed dimension only, hence the transposed copy.
        rows = quantize_rows(grad_SO, self.weight_8.dtype, self.weight_scale)
        return multiply(rows, transpose(self.weight_8).t(), None)
