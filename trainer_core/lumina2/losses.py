"""How an error of the network counts. Everything here runs on the device without waiting and keeps shapes.

Shape suffixes: B samples, T image tokens of all samples, C channels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def l2(error_TC: Tensor, delta: Tensor | float) -> Tensor:
    """The squared error; what Lumina2 was trained with."""
    return error_TC.square()


def huber(error_TC: Tensor, delta: Tensor | float) -> Tensor:
    """2 delta (sqrt(error^2 + delta^2) - delta): squared below delta, straight above it.

    Pseudo-Huber, scaled as in Khrapov et al., arXiv:2403.16728; written so that small errors lose no digits.
    """
    square_TC = error_TC.square()
    return 2 * delta * square_TC / ((square_TC + delta**2).sqrt() + delta)


def smooth_l1(error_TC: Tensor, delta: Tensor | float) -> Tensor:
    """`huber` divided by delta: it tends to twice the absolute error."""
    square_TC = error_TC.square()
    return 2 * square_TC / ((square_TC + delta**2).sqrt() + delta)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of the registry."""

    measure: Callable[[Tensor, Tensor | float], Tensor]
    """[T, C] errors and the delta, one for all or [T, 1], to [T, C]."""
    uses: frozenset[str] = frozenset()
    """Settings that mean something to it, of LOSS_SETTINGS."""


LOSS_SETTINGS = ("loss_delta", "loss_delta_schedule")
LOSSES: dict[str, Loss] = {
    "l2": Loss(measure=l2),
    "huber": Loss(measure=huber, uses=frozenset(LOSS_SETTINGS)),
    "smooth_l1": Loss(measure=smooth_l1, uses=frozenset(LOSS_SETTINGS)),
}


def constant_delta(delta: float, timesteps_B: Tensor) -> Tensor | float:
    """The same at every noise level."""
    return delta


def exponential_delta(delta: float, timesteps_B: Tensor) -> Tensor | float:
    """delta ** sigma: from 1 at the image to delta at pure noise."""
    return delta ** (1 - timesteps_B)


def snr_delta(delta: float, timesteps_B: Tensor) -> Tensor | float:
    """From delta at the image to 1 at pure noise, by the square root of the signal-to-noise ratio."""
    root_B = (timesteps_B / (1 - timesteps_B + 1e-4)).sqrt()
    return (1 - delta) / (1 + root_B).square() + delta


DELTA_SCHEDULES: dict[str, Callable[[float, Tensor], Tensor | float]] = {
    "constant": constant_delta,
    "exponential": exponential_delta,
    "snr": snr_delta,
}
"""Each gives the delta at times t [B], which run from 0 (noise) to 1 (image)."""


def measure_error(
    loss: str, delta: float, delta_schedule: str, error_TC: Tensor, timesteps_B: Tensor, sample_index_T: Tensor
) -> Tensor:
    """What the errors count, [T, C] float32.

    Args:
        loss: Key of LOSSES.
        delta: Where it turns from squared to straight.
        delta_schedule: Key of DELTA_SCHEDULES.
        error_TC: float32.
        timesteps_B: t of each sample.
        sample_index_T: The sample of each token.
    """
    chosen = LOSSES[loss]
    if not chosen.uses:
        return chosen.measure(error_TC, delta)
    at_time = DELTA_SCHEDULES[delta_schedule](delta, timesteps_B)
    if isinstance(at_time, Tensor):
        at_time = torch.index_select(at_time, 0, sample_index_T)[:, None]
    return chosen.measure(error_TC, at_time)
