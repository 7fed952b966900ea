"""Learning-rate schedules: a factor of the learning rate for each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine wave from 1 to 0 (Loshchilov and Hutter, SGDR, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


LR_SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine}
"""Each takes the progress after warm-up, 0 to 1, and gives the factor."""


def lr_factor(schedule: str, step: int, num_steps: int, num_warmup_steps: int) -> float:
    """Factor of the learning rate at one optimizer step.

    Args:
        schedule: Key of LR_SCHEDULES.
        step: Optimizer step, from 1.
        num_steps: Optimizer steps of the whole run.
        num_warmup_steps: Steps of linear rise; the last of them reaches 1.
    """
    if step <= num_warmup_steps:
        return step / num_warmup_steps
    return LR_SCHEDULES[schedule]((step - num_warmup_steps - 1) / max(1, num_steps - num_warmup_steps - 1))
