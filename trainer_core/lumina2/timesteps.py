"""Which noise levels are trained on.

sigma is the share of noise (1 is pure noise); the network's time is t = 1 - sigma. Other projects use either direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import check_settings, setting


def logit_normal(count: int, generator: torch.Generator) -> Tensor:
    """sigmoid(N(0, 1)): mostly middle noise levels (Esser et al., arXiv:2403.03206)."""
    return torch.sigmoid(torch.randn(count, generator=generator, dtype=torch.float32, device=generator.device))


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """All noise levels alike."""
    return torch.rand(count, generator=generator, dtype=torch.float32, device=generator.device)


TIMESTEP_SAMPLERS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "logit_normal": logit_normal,
    "uniform": uniform,
}
"""Each draws [count] float32 sigmas in [0, 1] before the shift."""


def auto_shift(num_image_tokens: int) -> float:
    """exp(mu), mu linear in the image tokens from 0.5 at 256 to 1.15 at 4096.

    Source: Alpha-VLLM/Lumina-Image-2.0, transport/transport.py (get_lin_function, do_shift).
    """
    return math.exp(0.5 + (1.15 - 0.5) * (num_image_tokens - 256) / (4096 - 256))


def apply_shift(sigmas: Tensor, shift: Tensor | float) -> Tensor:
    """Move sigmas towards noise: shift * sigma / (1 + (shift - 1) * sigma)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


SHIFT_MODES: dict[str, Callable[[int, float], float]] = {
    "auto": lambda num_image_tokens, static_shift: auto_shift(num_image_tokens),
    "static": lambda num_image_tokens, static_shift: static_shift,
    "none": lambda num_image_tokens, static_shift: 1.0,
}
"""Each takes the image tokens of a sample and the static shift, and gives the sample's shift."""


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """Widgets of Noise Schedule."""

    timestep_sampling: str = setting("logit_normal", choices=TIMESTEP_SAMPLERS)
    """Distribution of the noise level before the shift; "logit_normal" is what Lumina2 was trained with."""
    shift_mode: str = setting("auto", choices=SHIFT_MODES)
    """"auto" shifts towards noise by the picture's size as Lumina2's own training did, "static" by the number below,
    "none" not at all."""
    static_shift: float = setting(3.158, minimum=0.01, maximum=100.0, step=0.001)
    """The shift when shift_mode is "static". 6.0 belongs to sampling, not to training."""

    def __post_init__(self) -> None:
        check_settings(self)


def draw_timesteps(settings: NoiseSettings, num_image_tokens: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw the network's time of each sample.

    Args:
        settings: Distribution and shift.
        num_image_tokens: Image tokens of each sample (rows * columns of patches).
        generator: Source of randomness; the result is on its device.

    Returns:
        [B] float32, t from 0 (noise) to 1 (image).
    """
    sigmas = TIMESTEP_SAMPLERS[settings.timestep_sampling](len(num_image_tokens), generator)
    shifts = [SHIFT_MODES[settings.shift_mode](tokens, settings.static_shift) for tokens in num_image_tokens]
    return 1 - apply_shift(sigmas, torch.tensor(shifts, dtype=torch.float32, device=sigmas.device))
