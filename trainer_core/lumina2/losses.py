"""How an error of the network counts. Everything here runs on the device without waiting and keeps shapes.

Shape suffixes: B samples, T image tokens of all samples, C channels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .network.layout import TokenStream


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


TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Reflection:
    """What the loss needs of a batch besides inputs and targets."""

    clean_TC: Tensor
    """What the network answers to the straight mix of noise and picture."""
    direction_TC: Tensor
    """From what is shown to the picture."""
    is_rolled_B: Tensor
    """1 for rolled samples, 0 for others, of which the rest is not looked at."""
    alpha: float
    beta1: float
    beta2: float


def reflexflow_loss(reflection: Reflection, counted_TC: Tensor, velocity_TC: Tensor, image: TokenStream) -> Tensor:
    """Loss of each sample, [B]: beta2 * mean(w * error) + beta1 * |v / |v| - d / |d||^2, or the mean error.

    The loss of ReflexFlow (Huang et al., arXiv:2512.04904) for samples that the model itself has rolled: errors count
    more where rolling changed the answer, and the answer should point to the picture. The weight w differs from the
    paper's in its scale: the change is divided by its mean over the sample instead of its sum, which at the size of a
    picture leaves nothing of it, and taken without its sign, for a negative weight would reward errors.

    Args:
        reflection: Of the batch; w is 1 + alpha * |clean - v| / mean |clean - v|, a constant to the backward pass.
        counted_TC: Error of each element, as it counts.
        velocity_TC: What the network answers to what it is shown.
        image: The batch's image tokens.
    """
    change_TC = (reflection.clean_TC - velocity_TC.detach()).abs()
    mean_B = image.mean_by_sample(change_TC.mean(-1)).clamp_min(TINY)
    share_TC = change_TC / _by_token(mean_B, image)
    is_rolled_T1 = _by_token(reflection.is_rolled_B, image)
    weight_TC = torch.where(is_rolled_T1 > 0, reflection.beta2 * (1 + reflection.alpha * share_TC), 1.0)
    loss_B = image.mean_by_sample((weight_TC * counted_TC).mean(-1))
    return loss_B + reflection.beta1 * reflection.is_rolled_B * _direction_error(
        velocity_TC, reflection.direction_TC, image
    )


def _direction_error(velocity_TC: Tensor, direction_TC: Tensor, image: TokenStream) -> Tensor:
    """|v / |v| - d / |d||^2 = 2 - 2 cos(v, d) over a sample's elements, [B]."""
    products = (velocity_TC * direction_TC, velocity_TC.square(), direction_TC.square())
    inner_B, first_B, second_B = (image.mean_by_sample(product.mean(-1)) for product in products)
    return 2 - 2 * inner_B / (first_B * second_B).clamp_min(TINY).sqrt()


def _by_token(x_B: Tensor, image: TokenStream) -> Tensor:
    return torch.index_select(x_B, 0, image.sample_index)[:, None]
