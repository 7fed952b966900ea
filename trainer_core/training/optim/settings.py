"""The settings of an optimizer, and the schedules of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import TrainerError
from ...settings import check_settings, check_unused, setting

OWN = -1.0
"""Of beta1, beta2 and epsilon: what the optimizer is usually given."""
OPTIMIZER_STATES = ("device", "host")
"""Where the state of an optimizer is kept."""


@dataclass(frozen=True, kw_only=True)
class LrSchedule:
    """How the learning rate falls after warm-up."""

    fall: Callable[[float, OptimizerSettings], float]
    """From 1 to 0, by the progress after warm-up, 0 to 1."""
    uses: frozenset[str] = frozenset()
    """Settings that mean something to it, of SCHEDULE_SETTINGS."""


SCHEDULE_SETTINGS = ("lr_end_ratio", "lr_num_cycles", "lr_power")
"""Settings that only some schedules use."""


def constant(progress: float, settings: OptimizerSettings) -> float:
    """1 throughout."""
    return 1.0


def linear(progress: float, settings: OptimizerSettings) -> float:
    """A straight line."""
    return 1.0 - progress


def cosine(progress: float, settings: OptimizerSettings) -> float:
    """Half a cosine wave (Loshchilov and Hutter, SGDR, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_with_restarts(progress: float, settings: OptimizerSettings) -> float:
    """Several half waves, each of which starts at the full rate again (SGDR); the last ends at 0."""
    return 0.0 if progress >= 1 else cosine(progress * settings.lr_num_cycles % 1.0, settings)


def polynomial(progress: float, settings: OptimizerSettings) -> float:
    """A power of the straight line: above 1 it falls early, below 1 late."""
    return (1.0 - progress) ** settings.lr_power


LR_SCHEDULES: dict[str, LrSchedule] = {
    "constant": LrSchedule(fall=constant),
    "cosine": LrSchedule(fall=cosine, uses=frozenset({"lr_end_ratio"})),
    "linear": LrSchedule(fall=linear, uses=frozenset({"lr_end_ratio"})),
    "cosine_with_restarts": LrSchedule(fall=cosine_with_restarts, uses=frozenset({"lr_end_ratio", "lr_num_cycles"})),
    "polynomial": LrSchedule(fall=polynomial, uses=frozenset({"lr_end_ratio", "lr_power"})),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Widgets of Optimizer."""

    lr_schedule: str = setting("constant", choices=LR_SCHEDULES)
    """How the learning rate moves after warm-up: "constant" keeps it, the others let it fall until the last step:
    "linear" evenly, "cosine" in half a wave, "cosine_with_restarts" in several, "polynomial" as a power of linear."""
    num_warmup_steps: int = setting(0, minimum=0, maximum=1000000)
    """Optimizer steps over which the learning rate rises from zero."""
    weight_decay: float = setting(0.01, minimum=0.0, maximum=10.0, step=0.001)
    """Decoupled weight decay. Norms, biases and other vectors are not decayed."""
    beta1: float = setting(OWN, minimum=OWN, maximum=0.9999, step=0.01, is_advanced=True)
    """Decay of the running mean of gradients; of muon the momentum. -1 is the optimizer's own: 0.9, of muon 0.95."""
    beta2: float = setting(OWN, minimum=OWN, maximum=0.999999, step=0.001, is_advanced=True)
    """Decay of the running mean of squared gradients. -1 is the optimizer's own: 0.999, of lion and stableadamw 0.99.
    """
    epsilon: float = setting(OWN, minimum=OWN, maximum=1.0, step=1e-8, is_advanced=True)
    """Added to the denominator of the update. -1 is the optimizer's own: 1e-8, of stableadamw 1e-6."""
    gradient_accumulation_steps: int = setting(1, minimum=1, maximum=1024)
    """Batches added up before each optimizer step: a larger batch in the same memory, in more time. In full training
    with adamw8bit or adamw_bf16 more than 1 keeps all gradients, 4.9 GiB more: raise batch_size first."""
    max_grad_norm: float = setting(1.0, minimum=0.0, maximum=1000.0, step=0.1)
    """Gradients longer than this are shortened to it; 0 turns clipping off. Full training with adamw8bit or adamw_bf16
    updates each weight before all gradients are known, so there it limits the RMS of each weight's update instead
    (StableAdamW); 1 suits both."""
    optimizer_state: str = setting("device", choices=OPTIMIZER_STATES, is_optional=True, is_advanced=True)
    """Where adamw8bit and adamw_bf16 keep their running means. "host" moves them to the computer's memory: 5 or 10 GiB
    less on the GPU for full training, in up to twice the time."""
    lr_end_ratio: float = setting(0.0, minimum=0.0, maximum=1.0, step=0.01, is_optional=True, is_advanced=True)
    """Share of the learning rate that a falling schedule still has at the last step."""
    lr_num_cycles: int = setting(1, minimum=1, maximum=1000, is_optional=True, is_advanced=True)
    """Waves of "cosine_with_restarts"."""
    lr_power: float = setting(1.0, minimum=0.01, maximum=100.0, step=0.1, is_optional=True, is_advanced=True)
    """Power of "polynomial": above 1 the learning rate falls early, below 1 late."""

    def __post_init__(self) -> None:
        check_settings(self)
        for field in ("beta1", "beta2", "epsilon"):
            if OWN < getattr(self, field) < 0:
                raise TrainerError(f"{field} is {getattr(self, field):g}: it must be at least 0, or {OWN:g}")
        check_unused(self, SCHEDULE_SETTINGS, used=LR_SCHEDULES[self.lr_schedule].uses, chooser="lr_schedule")


def lr_factor(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Factor of the learning rate at one optimizer step, which depends on nothing else.

    Args:
        settings: Schedule, its numbers, and the steps of linear rise; the last of them reaches 1.
        step: Optimizer step, from 1.
        num_steps: Optimizer steps of the whole run.
    """
    warmup = settings.num_warmup_steps
    if step <= warmup:
        return step / warmup
    progress = (step - warmup - 1) / max(1, num_steps - warmup - 1)
    end = settings.lr_end_ratio
    return end + (1.0 - end) * LR_SCHEDULES[settings.lr_schedule].fall(progress, settings)
