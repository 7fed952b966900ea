"""Computes with the VAE in the memory that is free: whole where that fits, else in strips."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...device import available_memory, is_out_of_memory
from .vae_strips import SCALES, StripPlan, list_layers

logger = logging.getLogger(__name__)

WHOLE_LIVE_TENSORS = {"Encoder": 6.5, "Decoder": 5.0}
"""Tensors of the largest activation's size at the peak of the whole computation, by diffusers' class: a block's input,
a convolution's input and output, and what cuDNN rearranges these into, with some room. The decoder's peak is its last
upsampling, beside which the smaller inputs are small."""
LIVE_STRIPS = 10
"""Strips on the device at a convolution's peak: as read, normalised, padded, the output, both as cuDNN rearranges them,
the output as it is stored, and some to spare."""
WORKSPACE_BYTES = 2**26
"""What cuDNN takes beside, however small the strips: 0.27 GiB in all at 1024 on an H200, where ten strips are 0.23."""
MIN_STRIP_BYTES = 4 * 2**20
MAX_STRIP_BYTES = 64 * 2**20
"""32 rows of 256 channels in a picture 2048 wide: larger strips are no faster."""
USABLE_SHARE = 0.9
"""Of the free memory; the rest is for cuDNN's workspaces and what the allocator cannot use."""
SMALLEST = StripPlan(strip_bytes=MIN_STRIP_BYTES, kept_bytes=0)


def compute_in_free_memory(
    part: nn.Module,
    inputs_BCHW: Tensor,
    *,
    whole: Callable[[Tensor], Tensor],
    in_strips: Callable[[Tensor, StripPlan], Tensor],
) -> Tensor:
    """Compute whole if that fits, else picture by picture and, where one does not fit either, in strips.

    Args:
        part: The VAE's encoder or decoder.
        inputs_BCHW: [B, C, H, W] what it computes from, on its device.
        whole: Computes a batch by diffusers' own code.
        in_strips: Computes one picture [1, C, H, W] by a plan.

    Returns:
        What `whole` returns, up to float rounding, and bit for bit where the batch fits.
    """
    device, (num_pictures, _, height, width) = inputs_BCHW.device, inputs_BCHW.shape
    what = f"{type(part).__name__.lower()} with an input of {width} x {height}"
    plan = choose_plan(part, height, width, free_bytes(device) / num_pictures)
    while plan is None or num_pictures == 1:
        try:
            if plan is None:
                return whole(inputs_BCHW)
            logger.info("The VAE's %s is computed in strips, which takes longer: too little memory is free", what)
            return in_strips(inputs_BCHW, plan)
        except (RuntimeError, MemoryError) as error:
            if plan == SMALLEST or not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        logger.warning("The VAE's %s ran out of memory: again with less", what)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        plan = choose_strips(part, height, width, free_bytes(device)) if plan is None else SMALLEST
    compute_one = partial(compute_in_free_memory, part, whole=whole, in_strips=in_strips)
    return torch.cat([compute_one(picture_1CHW) for picture_1CHW in inputs_BCHW.split(1)])


def free_bytes(device: torch.device) -> float:
    """Bytes free on a GPU, or held by PyTorch without being used; no bound on other devices."""
    return available_memory(device)[0] if device.type == "cuda" else math.inf


def choose_plan(part: nn.Module, height: int, width: int, num_free_bytes: float) -> StripPlan | None:
    """Choose how to compute one picture: None for whole, if that fits, else in strips.

    Args:
        part: The VAE's encoder or decoder.
        height: Of its input: pixels for an encoder, latents for a decoder.
        width: Likewise.
        num_free_bytes: Free on the device.
    """
    if estimate_bytes(part, height, width, None) <= USABLE_SHARE * num_free_bytes:
        return None
    return choose_strips(part, height, width, num_free_bytes)


def choose_strips(part: nn.Module, height: int, width: int, num_free_bytes: float) -> StripPlan:
    """Choose the strips and what stays on the device, which is all that fits; see `choose_plan`."""
    usable = USABLE_SHARE * num_free_bytes
    strip_bytes = int(min(max(usable / (8 * LIVE_STRIPS), MIN_STRIP_BYTES), MAX_STRIP_BYTES))
    sizes = {size for layer in _measure(part, height, width) for size in (layer.bytes_before, layer.bytes_after)}
    plans = (StripPlan(strip_bytes=strip_bytes, kept_bytes=kept) for kept in sorted(sizes, reverse=True))
    fitting = (plan for plan in plans if estimate_bytes(part, height, width, plan) <= usable)
    return next(fitting, StripPlan(strip_bytes=strip_bytes, kept_bytes=0))


def estimate_bytes(part: nn.Module, height: int, width: int, plan: StripPlan | None) -> float:
    """The most bytes that one picture takes on the device beside the weights.

    Args:
        part: See `choose_plan`.
        height: Likewise.
        width: Likewise.
        plan: None for whole.
    """
    layers = list(_measure(part, height, width))
    if plan is None:
        return WHOLE_LIVE_TENSORS[type(part).__name__] * max(layer.bytes_after for layer in layers)
    row_bytes = max(layer.row_bytes for layer in layers)
    strip_bytes = max(plan.strip_bytes, row_bytes) + 2 * row_bytes  # with a row above and one below
    return max(layer.bytes_on_device(plan) for layer in layers) + LIVE_STRIPS * strip_bytes + WORKSPACE_BYTES


@dataclass(frozen=True, kw_only=True)
class _LayerSizes:
    bytes_before: int
    """The size of the layer's whole input."""
    bytes_after: int
    row_bytes: int
    """The size of an input's row or of what is computed from it, whichever is more."""
    is_attention: bool

    def bytes_on_device(self, plan: StripPlan) -> int:
        """The size of what stays there of input and output; attention writes over its input, beside keys and values
        that always stay."""
        stored = [self.bytes_before] if self.is_attention else [self.bytes_before, self.bytes_after]
        beside = 2 * self.bytes_before if self.is_attention else 0
        return sum(size for size in stored if size <= plan.kept_bytes) + beside


def _measure(part: Any, height: int, width: int) -> Iterator[_LayerSizes]:
    channels, itemsize = part.conv_in.in_channels, part.conv_in.weight.element_size()
    for layer in [*list_layers(part), part.conv_out]:
        kind, rows_before = type(layer).__name__, height
        before = channels * height * width * itemsize
        height, width = (int(side * SCALES.get(kind, 1)) for side in (height, width))
        channels = getattr(layer, "out_channels", channels)
        after = channels * height * width * itemsize
        yield _LayerSizes(
            bytes_before=before,
            bytes_after=after,
            row_bytes=max(before, after) // rows_before,
            is_attention=kind == "Attention",
        )
