"""Settings of the rollout: which samples are rolled, from how far back, and by which sampler.

Scheduled sampling: a rolled sample is not the straight mix of noise and picture, but what the model itself makes of a
noisier mix, so that training sees the inputs that sampling will give it (Bengio et al., arXiv:1506.03099).

Shape suffixes: B samples, T image tokens of all samples, R tokens of the rolled samples, C channels of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import TrainerError
from ..settings import check_settings, check_unused, setting

UNITS_OF_SIGMA = 1000
"""An offset of one is a thousandth of the way from picture to noise, as in tables of 1000 timesteps."""

STRATEGIES: dict[str, Callable[[float, int], int]] = {
    "uniform": lambda u, largest: 1 + int(u * largest),
    "biased_early": lambda u, largest: 1 + int(u * u * largest),
    "biased_late": lambda u, largest: min(1 + int((1 - u * u) * largest), largest),
}
"""Each turns a uniform draw from [0, 1) into an offset from 1 to the largest."""

RAMP_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}
"""Each maps progress from 0 to 1 onto 0 to 1."""

ROLLOUT_TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "velocity": lambda target_RC, drift_RC, gain_R1: target_RC,
    "corrective": lambda target_RC, drift_RC, gain_R1: target_RC + drift_RC * gain_R1,
}
"""Each takes latents - noise, what the rolled sample lacks to the straight mix, and one over the share of noise."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""From noisy tokens [T, C] and times [B]: towards the picture, [T, C]."""


def euler_step(velocity: Velocity, x_TC: Tensor, timesteps_B: Tensor, sizes_B: Tensor, sizes_T1: Tensor) -> Tensor:
    """One explicit Euler step; sizes_T1 are the steps' sizes again, by token."""
    return x_TC + sizes_T1 * velocity(x_TC, timesteps_B)


def heun_step(velocity: Velocity, x_TC: Tensor, timesteps_B: Tensor, sizes_B: Tensor, sizes_T1: Tensor) -> Tensor:
    """One step of Heun's method: with the mean of the velocities at both ends of an Euler step."""
    first_TC = velocity(x_TC, timesteps_B)
    second_TC = velocity(x_TC + sizes_T1 * first_TC, timesteps_B + sizes_B)
    return x_TC + sizes_T1 * (first_TC + second_TC) / 2


@dataclass(frozen=True, kw_only=True)
class RolloutSampler:
    """How a sample gets from its first time to its last."""

    step: Callable[[Velocity, Tensor, Tensor, Tensor, Tensor], Tensor]
    passes_per_step: int
    """Forward passes."""
    has_unit_steps: bool = False
    """A step for each unit of the offset, in place of num_sampler_steps."""


ROLLOUT_SAMPLERS: dict[str, RolloutSampler] = {
    "euler": RolloutSampler(step=euler_step, passes_per_step=1),
    "euler_unit": RolloutSampler(step=euler_step, passes_per_step=1, has_unit_steps=True),
    "heun": RolloutSampler(step=heun_step, passes_per_step=2),
}

RAMP_SETTINGS = ("probability_start", "probability_end", "ramp_shape")
REFLEXFLOW_SETTINGS = ("reflexflow_alpha", "reflexflow_beta1", "reflexflow_beta2")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Widgets of Rollout."""

    max_step_offset: int = setting(50, minimum=1, maximum=UNITS_OF_SIGMA)
    """How much noisier a rolled sample starts, at most, in thousandths of sigma. A step of a 30-step sampler is about
    33; 5 to 10 change little."""
    strategy: str = setting("uniform", choices=STRATEGIES)
    """How offsets from 1 to max_step_offset are drawn: "uniform" all alike, "biased_early" mostly small, "biased_late"
    mostly large."""
    probability: float = setting(0.5, minimum=0.0, maximum=1.0, step=0.05)
    """Share of samples that are rolled from start_step on, when num_ramp_steps is 0."""
    probability_start: float = setting(0.0, minimum=0.0, maximum=1.0, step=0.05)
    """With num_ramp_steps: share of samples that are rolled until start_step."""
    probability_end: float = setting(0.5, minimum=0.0, maximum=1.0, step=0.05)
    """With num_ramp_steps: share of samples that are rolled once the ramp is over."""
    num_ramp_steps: int = setting(0, minimum=0, maximum=10000000)
    """Optimizer steps over which the share goes from probability_start to probability_end; 0 keeps probability."""
    start_step: int = setting(1, minimum=1, maximum=10000000)
    """Optimizer step at which rolling, or the ramp, begins; later lets the model learn the data first."""
    ramp_shape: str = setting("linear", choices=RAMP_SHAPES)
    """With num_ramp_steps: "linear" rises evenly, "cosine" slowly at both ends."""
    sampler: str = setting("euler", choices=ROLLOUT_SAMPLERS)
    """"euler" takes num_sampler_steps equal steps, one forward pass each; "heun" the same with two passes each, nearer
    to the exact path; "euler_unit" one pass for each thousandth of sigma, which is slow."""
    num_sampler_steps: int = setting(1, minimum=1, maximum=100)
    """Steps of "euler" and "heun" over the whole offset. 1 is the error that one step of a sampler makes."""
    target: str = setting("velocity", choices=ROLLOUT_TARGETS)
    """What a rolled sample should answer: "velocity" the same as any other, latents - noise; "corrective" the velocity
    that leads from where it is to the picture, which also undoes its error."""
    use_reflexflow: bool = setting(False)
    """Change the loss of rolled samples by ReflexFlow (arXiv:2512.04904), at one more forward pass. The logged loss
    then has its terms, and cannot be compared with that of other runs."""
    reflexflow_alpha: float = setting(1.0, minimum=0.0, maximum=100.0, step=0.1)
    """For use_reflexflow: how much more errors count where rolling changed the answer; the mean weight is 1 + alpha."""
    reflexflow_beta1: float = setting(10.0, minimum=0.0, maximum=1000.0, step=0.5)
    """For use_reflexflow: weight of the difference in direction between the answer and the way to the picture."""
    reflexflow_beta2: float = setting(1.0, minimum=0.01, maximum=1000.0, step=0.1)
    """For use_reflexflow: weight of the error itself."""

    def __post_init__(self) -> None:
        check_settings(self)
        ramp = RAMP_SETTINGS if self.num_ramp_steps else ("probability",)
        check_unused(self, ("probability", *RAMP_SETTINGS), used=ramp, chooser="num_ramp_steps")
        steps = () if ROLLOUT_SAMPLERS[self.sampler].has_unit_steps else ("num_sampler_steps",)
        check_unused(self, ("num_sampler_steps",), used=steps, chooser="sampler")
        reflexflow = REFLEXFLOW_SETTINGS if self.use_reflexflow else ()
        check_unused(self, REFLEXFLOW_SETTINGS, used=reflexflow, chooser="use_reflexflow")
        if not self.num_ramp_steps and not self.probability:
            raise TrainerError(
                "probability is 0, so no sample would be rolled: raise it, set num_ramp_steps, or disconnect Rollout"
            )
        if self.num_ramp_steps and not (self.probability_start or self.probability_end):
            raise TrainerError(
                "probability_start and probability_end are 0, so no sample would be rolled: raise probability_end, or"
                " disconnect Rollout"
            )

    def probability_at(self, step: int) -> float:
        """Share of samples that are rolled at an optimizer step, from 1."""
        if not self.num_ramp_steps:
            return self.probability if step >= self.start_step else 0.0
        progress = min(max((step - self.start_step) / self.num_ramp_steps, 0.0), 1.0)
        rise = self.probability_end - self.probability_start
        return self.probability_start + rise * RAMP_SHAPES[self.ramp_shape](progress)

    def num_steps(self, offset: int) -> int:
        """Steps of the sampler over an offset."""
        return offset if ROLLOUT_SAMPLERS[self.sampler].has_unit_steps else self.num_sampler_steps

    @property
    def sentence(self) -> str:
        """What it costs, for the log."""
        sampler = ROLLOUT_SAMPLERS[self.sampler]
        count = self.num_steps(self.max_step_offset) * sampler.passes_per_step + self.use_reflexflow
        passes = f"{'up to ' if sampler.has_unit_steps else ''}{count} more forward pass{'es' if count > 1 else ''}"
        return f"rollout: {passes} for the rolled samples of a batch, without gradients and outside of CUDA graphs"
