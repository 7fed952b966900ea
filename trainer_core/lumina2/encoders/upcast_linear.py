"""A linear layer that computes in float32 with bfloat16 weights, at bfloat16's speed where that is fast."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DATACENTER_CAPABILITIES = frozenset({(8, 0), (9, 0), (10, 0), (10, 3)})
"""A100, H100, B200, B300: their tensor cores multiply bfloat16 about 15 times as fast as they do float32. Other cards
have a factor of 2 to 4, which the three products below would use up."""


class UpcastLinear(nn.Linear):
    """Computes in its input's precision, whatever its weight is stored as."""

    def forward(self, x: Tensor) -> Tensor:
        is_split = x.is_cuda and x.dtype == torch.float32 and self.weight.dtype == torch.bfloat16
        if is_split and _has_fast_bfloat16(x.device):
            return _multiply_in_parts(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))


@functools.cache
def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether three bfloat16 products that add up in float32 are faster than one float32 product."""
    # torch.mm has out_dtype since 2.8.
    return torch.cuda.get_device_capability(device) in DATACENTER_CAPABILITIES and hasattr(torch.ops.aten.mm, "dtype")


def split_float32(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three bfloat16 tensors whose sum is a float32 one: 3 times 8 bits of mantissa hold all 24.

    Source of the trick: Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
    Higher-Precision Computations", arXiv:1904.06376. Exact for normal numbers that are not near the smallest.

    Args:
        x: Any shape, float32.

    Returns:
        The parts, largest first.
    """
    high = x.bfloat16()
    rest = x - high.float()
    middle = rest.bfloat16()
    return high, middle, (rest - middle.float()).bfloat16()


def _multiply_in_parts(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x @ weight.T as exact as in float32: products of bfloat16 numbers are exact, and their sums are float32."""
    rows_RI = x.reshape(-1, x.shape[-1])
    parts_PI = torch.cat(split_float32(rows_RI))  # one product reads the weight once: [3 R, I]
    out_PO = torch.mm(parts_PI, weight_OI.t(), out_dtype=torch.float32)
    high, middle, low = out_PO.view(3, len(rows_RI), -1).unbind()
    return low.add_(middle).add_(high).view(*x.shape[:-1], -1)  # smallest first
