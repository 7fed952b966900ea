"""Numbers of 4 bits: NF4, whose 16 levels are the quantiles of a normal distribution, two to a byte.

Each block of 64 numbers is divided by its largest magnitude and rounded to the nearest level (Dettmers et al., QLoRA,
arXiv:2305.14314, appendix E). The blocks run through a matrix row after row; scales are float32, not quantised again.

Shape suffixes: S tokens, O outputs, I inputs, N blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.ops import is_fused
from .compressed_linear import CompressedLinear

BLOCK = 64
"""Numbers that share a scale."""
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
CONVERTED_AT_ONCE = 2**21
"""Numbers that are float32 at a time; whole blocks."""
SMALLEST_SCALE = 1e-12


def make_levels(device: torch.device) -> Tensor:
    """[16] float32, in rising order."""
    return torch.tensor(LEVELS, dtype=torch.float32, device=device)


@torch.no_grad()
def pack(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix; the numbers are the same on every device.

    Args:
        weight_OI: Floating point with an even number of columns.

    Returns:
        [O, I / 2] uint8, the first number of each pair in the upper half, and the [N, 1] float32 scales.
    """
    num_rows, num_columns = weight_OI.shape
    assert num_columns % 2 == 0, f"{num_columns} columns do not pair up"
    levels = make_levels(weight_OI.device)
    limits = (levels[1:] + levels[:-1]) / 2
    flat = weight_OI.reshape(-1)
    packed = torch.empty(len(flat) // 2, dtype=torch.uint8, device=flat.device)
    scales_N1 = torch.empty(-(-len(flat) // BLOCK), 1, dtype=torch.float32, device=flat.device)
    for first in range(0, len(flat), CONVERTED_AT_ONCE):
        part = flat[first : first + CONVERTED_AT_ONCE].float()
        blocks = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(1, keepdim=True).clamp_(min=SMALLEST_SCALE)
        scales_N1[first // BLOCK :][: len(scale)] = scale
        codes = torch.bucketize(blocks / scale, limits, out_int32=True).view(-1)[: len(part)].to(torch.uint8)
        packed[first // 2 :][: len(part) // 2] = (codes[::2] << 4) | codes[1::2]
    return packed.view(num_rows, num_columns // 2), scales_N1


@torch.no_grad()
def unpack(packed: Tensor, scales_N1: Tensor, levels: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix that was packed, [O, I]; each number is computed in float32 and rounded once.

    Args:
        packed: [O, I / 2] uint8.
        scales_N1: Of its blocks.
        levels: See `make_levels`.
        dtype: Of the result.
    """
    num_rows, num_bytes = packed.shape
    weight_OI = torch.empty(num_rows, 2 * num_bytes, dtype=dtype, device=packed.device)
    if is_fused(packed):
        from ..ops.kernels import four_bit

        four_bit.unpack(packed, scales_N1, levels, weight_OI, BLOCK)
        return weight_OI
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)  # [256, 2], by byte
    flat, stored = weight_OI.view(-1), packed.view(-1)
    for first in range(0, len(flat), CONVERTED_AT_ONCE):
        part = flat[first : first + CONVERTED_AT_ONCE]
        values = pairs.index_select(0, stored[first // 2 :][: len(part) // 2].int()).view(-1)
        scale_N1 = scales_N1[first // BLOCK :][: -(-len(part) // BLOCK)]
        num_whole = len(part) // BLOCK
        whole = num_whole * BLOCK
        values[:whole].view(-1, BLOCK).mul_(scale_N1[:num_whole])
        values[whole:] *= scale_N1[num_whole:].view(-1)  # none or one
        part.copy_(values)
    return weight_OI


class FourBitLinear(CompressedLinear):
    """A frozen Linear layer with weights of 4 bits.

    The weight is unpacked in the input's dtype for each product, forward and backward, and gone after it: what is kept
    is the packed weight alone. A GPU unpacks a matrix in the time of reading and writing it once.
    """

    weight_4: Tensor
    """[O, I / 2] uint8: two numbers to a byte."""
    weight_scale_N1: Tensor
    """float32. Two dimensions let it be swapped with the weight."""
    levels: Tensor
    """[16] float32."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Quantise a weight on its device.

        Args:
            weight_OI: Floating point; `weight` will give its dtype back.
            bias_O: Kept as it is.
        """
        super().__init__(weight_OI, bias_O)
        weight_4, weight_scale_N1 = pack(weight_OI)
        self.weight_4 = nn.Parameter(weight_4, requires_grad=False)
        self.register_buffer("weight_scale_N1", weight_scale_N1)
        self.register_buffer("levels", make_levels(weight_OI.device), persistent=False)

    @property
    def stored_device(self) -> torch.device:
        return self.weight_4.device

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return unpack(self.weight_4, self.weight_scale_N1, self.levels.to(self.weight_4.device), dtype)

    def product(self, x_SI: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_SI.dtype)
        return F.linear(x_SI, self.unpacked(x_SI.dtype), bias)

    def input_gradient(self, grad_SO: Tensor) -> Tensor:
        return grad_SO @ self.unpacked(grad_SO.dtype)

    def add_input_gradient(self, grad_SO: Tensor, grad_SI: Tensor) -> Tensor:
        return grad_SI.addmm_(grad_SO, self.unpacked(grad_SO.dtype))
