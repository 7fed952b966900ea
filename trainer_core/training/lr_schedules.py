"""Learning-rate schedules: a factor of the learning rate for each optimizer step, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import OptimizerSettings


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


def lr_factor(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Factor of the learning rate at one optimizer step.

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
