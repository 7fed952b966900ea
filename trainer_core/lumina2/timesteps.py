"""Which noise levels are trained on.

sigma is the share of noise (1 is pure noise); the network's time is t = 1 - sigma. Other projects use either direction.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TrainerError
from ..settings import check_settings, check_unused, setting
from .losses import DELTA_SCHEDULES, LOSS_SETTINGS, LOSSES


def logit_normal(settings: NoiseSettings, count: int, generator: torch.Generator, position: int) -> Tensor:
    """sigmoid(N(offset, scale)): mostly middle noise levels (Esser et al., arXiv:2403.03206)."""
    normal = torch.randn(count, generator=generator, dtype=torch.float32, device=generator.device)
    return torch.sigmoid(settings.logit_scale * normal + settings.logit_offset)


def uniform(settings: NoiseSettings, count: int, generator: torch.Generator, position: int) -> Tensor:
    """All noise levels alike."""
    return torch.rand(count, generator=generator, dtype=torch.float32, device=generator.device)


def beta(settings: NoiseSettings, count: int, generator: torch.Generator, position: int) -> Tensor:
    """A beta distribution: both 2 is a hump, both below 1 prefers the ends."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    draws = random.Random(int(seed))  # PyTorch's public beta distribution takes no generator
    sigmas = [draws.betavariate(settings.beta_alpha, settings.beta_beta) for _ in range(count)]
    return torch.tensor(sigmas, dtype=torch.float32, device=generator.device)


def custom(settings: NoiseSettings, count: int, generator: torch.Generator, position: int) -> Tensor:
    """One of a list of noise levels, each as likely as any other."""
    levels = settings.custom_levels
    index = torch.randint(len(levels), (count,), generator=generator, device=generator.device)
    return torch.tensor(levels, dtype=torch.float32, device=generator.device)[index]


def custom_in_turn(settings: NoiseSettings, count: int, generator: torch.Generator, position: int) -> Tensor:
    """The levels of a list one after another, over and over."""
    levels = settings.custom_levels
    chosen = [levels[(position + number) % len(levels)] for number in range(count)]
    return torch.tensor(chosen, dtype=torch.float32, device=generator.device)


@dataclass(frozen=True, kw_only=True)
class TimestepSampler:
    """A distribution of noise levels."""

    draw: Callable[[NoiseSettings, int, torch.Generator, int], Tensor]
    """[count] float32 sigmas in [0, 1] before the shift; the last argument is the first sample's place in the run."""
    uses: frozenset[str] = frozenset()
    """Settings that mean something to it, of SAMPLER_SETTINGS."""
    is_shifted: bool = True


SAMPLER_SETTINGS = ("logit_scale", "logit_offset", "beta_alpha", "beta_beta", "custom_sigmas")
TIMESTEP_SAMPLERS: dict[str, TimestepSampler] = {
    "logit_normal": TimestepSampler(draw=logit_normal, uses=frozenset({"logit_scale", "logit_offset"})),
    "uniform": TimestepSampler(draw=uniform),
    "beta": TimestepSampler(draw=beta, uses=frozenset({"beta_alpha", "beta_beta"})),
    "custom": TimestepSampler(draw=custom, uses=frozenset({"custom_sigmas"}), is_shifted=False),
    "custom_in_turn": TimestepSampler(draw=custom_in_turn, uses=frozenset({"custom_sigmas"}), is_shifted=False),
}


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
    """Distribution of the noise level before the shift; "logit_normal" is what Lumina2 was trained with. "custom" draws
    from the list custom_sigmas and "custom_in_turn" goes through it, both without a shift."""
    shift_mode: str = setting("auto", choices=SHIFT_MODES)
    """"auto" shifts towards noise by the picture's size as Lumina2's own training did, "static" by the number below,
    "none" not at all."""
    static_shift: float = setting(3.158, minimum=0.01, maximum=100.0, step=0.001)
    """The shift when shift_mode is "static". 6.0 belongs to sampling, not to training."""

    logit_scale: float = setting(1.0, minimum=0.01, maximum=10.0, step=0.05, is_optional=True, is_advanced=True)
    """Spread of "logit_normal": less stays nearer to the middle."""
    logit_offset: float = setting(0.0, minimum=-10.0, maximum=10.0, step=0.05, is_optional=True, is_advanced=True)
    """Moves "logit_normal" towards noise, or below 0 towards the picture."""
    beta_alpha: float = setting(2.0, minimum=0.05, maximum=100.0, step=0.1, is_optional=True, is_advanced=True)
    """First number of "beta": more moves it towards noise."""
    beta_beta: float = setting(2.0, minimum=0.05, maximum=100.0, step=0.1, is_optional=True, is_advanced=True)
    """Second number of "beta": more moves it towards the picture."""
    custom_sigmas: str = setting("", is_optional=True, is_advanced=True)
    """Noise levels of "custom", from 0 (picture) to 1 (pure noise), with commas or spaces between."""
    loss: str = setting("l2", choices=LOSSES, is_optional=True)
    """How errors count: "l2" squared, as Lumina2 was trained; "huber" and "smooth_l1" count large errors less, for
    pictures with faults."""
    loss_delta: float = setting(0.1, minimum=0.0001, maximum=100.0, step=0.01, is_optional=True, is_advanced=True)
    """Error from which on "huber" and "smooth_l1" count it straight instead of squared."""
    loss_delta_schedule: str = setting("constant", choices=DELTA_SCHEDULES, is_optional=True, is_advanced=True)
    """loss_delta at each noise level: "constant", "exponential" falls to it from 1 towards noise, "snr" from 1 towards
    the picture."""
    input_perturbation: float = setting(0.0, minimum=0.0, maximum=1.0, step=0.01, is_optional=True, is_advanced=True)
    """Size of more noise that the network is shown but not asked for, against overfitting (arXiv:2301.11706); 0.1 is
    its authors' choice, 0 is none."""
    input_perturbation_steps: int = setting(0, minimum=0, maximum=10000000, is_optional=True, is_advanced=True)
    """Optimizer steps over which input_perturbation falls to nothing; 0 keeps it."""
    low_resolution_weight: float = setting(
        0.0, minimum=0.0, maximum=100.0, step=0.1, is_optional=True, is_advanced=True
    )
    """Weight of a second loss on the latents at a quarter of the size, with the same caption, as in Lumina2's own
    training (1); 0 leaves it out. It adds a sixteenth of the picture's tokens, and its caption, to the work."""

    def __post_init__(self) -> None:
        check_settings(self)
        sampler = TIMESTEP_SAMPLERS[self.timestep_sampling]
        check_unused(self, SAMPLER_SETTINGS, used=sampler.uses, chooser="timestep_sampling")
        check_unused(self, LOSS_SETTINGS, used=LOSSES[self.loss].uses, chooser="loss")
        if self.input_perturbation_steps and not self.input_perturbation:
            raise TrainerError(
                f"input_perturbation_steps is {self.input_perturbation_steps}, but input_perturbation is 0:"
                " set both, or neither"
            )
        if "custom_sigmas" in sampler.uses and not self.custom_levels:
            raise TrainerError(
                f"custom_sigmas is empty, from which timestep_sampling {self.timestep_sampling} draws:"
                ' write noise levels such as "0.25, 0.5, 0.75"'
            )

    @property
    def custom_levels(self) -> tuple[float, ...]:
        """The noise levels of custom_sigmas.

        Raises:
            TrainerError: One is no number from 0 to 1.
        """
        levels = []
        for text in self.custom_sigmas.replace(",", " ").split():
            try:
                level = float(text)
            except ValueError:
                level = math.nan
            if not 0 <= level <= 1:
                raise TrainerError(
                    f"custom_sigmas has {text!r}: write numbers from 0 (picture) to 1 (pure noise), such as 0.25, 0.5"
                )
            levels.append(level)
        return tuple(levels)

    def perturbation_at(self, step: int) -> float:
        """Size of the additional noise at an optimizer step, from 1."""
        if not self.input_perturbation_steps:
            return self.input_perturbation
        return self.input_perturbation * max(0.0, 1 - (step - 1) / self.input_perturbation_steps)


def draw_timesteps(
    settings: NoiseSettings, num_image_tokens: tuple[int, ...], generator: torch.Generator, position: int = 0
) -> Tensor:
    """Draw the network's time of each sample.

    Args:
        settings: Distribution and shift.
        num_image_tokens: Image tokens of each sample (rows * columns of patches).
        generator: Source of randomness; the result is on its device.
        position: Place of the first sample in the run, for lists that are gone through in turn.

    Returns:
        [B] float32, t from 0 (noise) to 1 (image).
    """
    sampler = TIMESTEP_SAMPLERS[settings.timestep_sampling]
    sigmas = sampler.draw(settings, len(num_image_tokens), generator, position)
    if not sampler.is_shifted:
        return 1 - sigmas
    shifts = [SHIFT_MODES[settings.shift_mode](tokens, settings.static_shift) for tokens in num_image_tokens]
    return 1 - apply_shift(sigmas, torch.tensor(shifts, dtype=torch.float32, device=sigmas.device))
