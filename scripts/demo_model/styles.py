"""Made-up styles: the emoji moved, resized, recoloured and lit differently, shown under made-up words.

Without them the model knows one picture for each caption and nothing else, and a LoRA of another style has to break
that first. With them plain captions still give plain emoji, and unknown words before a caption mean that anything may
change.

Shape suffixes: B pictures, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def restyle(pictures_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Give each picture a style of its own, on white as before.

    Args:
        pictures_B3HW: uint8.
        generator: On the pictures' device.

    Returns:
        [B, 3, H, W] uint8.
    """
    count, device = pictures_B3HW.shape[0], pictures_B3HW.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator, device=device)

    ink_B3HW = 1 - pictures_B3HW.float() / 255  # white is 0, so moving and recolouring leave the paper white
    size_B, stretch_B, angle_B = uniform(0.95, 1.3), uniform(0.9, 1.1), uniform(-0.15, 0.15)
    moves = [
        size_B * stretch_B * angle_B.cos(),
        -size_B * angle_B.sin(),
        uniform(-0.1, 0.1),
        size_B * angle_B.sin(),
        size_B / stretch_B * angle_B.cos(),
        uniform(-0.1, 0.1),
    ]
    grid = F.affine_grid(torch.stack(moves, 1).view(count, 2, 3), list(ink_B3HW.shape), align_corners=False)
    ink_B3HW = F.grid_sample(ink_B3HW, grid, padding_mode="zeros", align_corners=False)
    is_ink_B1HW = (ink_B3HW.amax(1, keepdim=True) * 12).clamp(max=1)
    colour_B3HW = 1 - ink_B3HW
    mix_B33 = torch.eye(3, device=device) + uniform(-0.25, 0.25, 3, 3)
    colour_B3HW = torch.einsum("bij,bjhw->bihw", mix_B33, colour_B3HW - 0.5) + 0.5
    height, width = colour_B3HW.shape[-2:]
    y_H1 = torch.linspace(-1, 1, height, device=device)[:, None]
    x_1W = torch.linspace(-1, 1, width, device=device)[None]
    slope_B311, slope_x_B311 = uniform(-0.25, 0.25, 3, 1, 1), uniform(-0.1, 0.1, 3, 1, 1)
    colour_B3HW = colour_B3HW + slope_B311 * y_H1 + slope_x_B311 * x_1W + uniform(-0.1, 0.1, 3, 1, 1)
    styled_B3HW = is_ink_B1HW * colour_B3HW + (1 - is_ink_B1HW)
    return (styled_B3HW.clamp(0, 1) * 255).round().to(torch.uint8)
