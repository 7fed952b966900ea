"""The second loss of Lumina2's own training: the same picture at a quarter of its size.

Each step also shows the network the latents averaged over 4 x 4, with the same caption, and with a noise and a time of
their own that is shifted as the whole picture's. Source: Alpha-VLLM/Lumina-Image-2.0, finetune.py (x_mb_256, loss_256).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from ..errors import TrainerError
from ..lumina2.timesteps import NoiseSettings

FACTOR = 4
PATCH = 2
PIXELS_PER_LATENT = 8
SMALLEST_SIDE = PIXELS_PER_LATENT * FACTOR * PATCH
"""Pixels from which on a quarter of a picture still has a patch."""


def shrink_latents(latents_CHW: Tensor) -> Tensor:
    """Averages over 4 x 4; what does not fill a patch of them at the right and lower edge is left out."""
    height, width = (side - side % (FACTOR * PATCH) for side in latents_CHW.shape[-2:])
    return F.avg_pool2d(latents_CHW[None, :, :height, :width], FACTOR)[0]


def num_low_resolution_tokens(width: int, height: int) -> int:
    """Image tokens of a shrunk picture.

    Args:
        width: Of the whole picture, in pixels.
        height: Likewise.
    """
    return (width // SMALLEST_SIDE) * (height // SMALLEST_SIDE)


class SizedSample(Protocol):
    """What is looked at of a sample; see `TrainingSample`."""

    @property
    def id(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


def check_low_resolution(noise: NoiseSettings, samples: Sequence[SizedSample]) -> None:
    """Check that every picture can be shrunk.

    Raises:
        TrainerError: The second loss is asked for, and a picture is too small.
    """
    small = [s for s in samples if min(s.width, s.height) < SMALLEST_SIDE]
    if noise.low_resolution_weight and small:
        raise TrainerError(
            f"low_resolution_weight is {noise.low_resolution_weight:g}, but {small[0].id} is trained at"
            f" {small[0].width} x {small[0].height} pixels and {len(small) - 1} more are as small: it needs"
            f" {SMALLEST_SIDE} a side; set it to 0 or raise the resolution"
        )
