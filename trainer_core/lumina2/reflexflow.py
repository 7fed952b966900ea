"""The loss of ReflexFlow for samples that the model itself has rolled (Huang et al., arXiv:2512.04904).

Its two parts, each for rolled samples only: errors count more where rolling changed the answer, and the answer should
point to the picture. The weight differs from the paper's in its scale: the change is divided by its mean over the
sample instead of its sum, which at the size of a picture leaves nothing of it, and taken without its sign, for a
negative weight would reward errors.

Shape suffixes: B samples, T image tokens of all samples, C channels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .network.layout import TokenStream

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
