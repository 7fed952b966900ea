"""What one update of one parameter depends on besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UpdateNumbers:
    """The numbers of AdamW, and where its random bits come from."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    step: int
    """Updates of this parameter so far, this one included."""
    seed: int
    stream: int
    """Index of the parameter."""

    @property
    def mean_correction(self) -> float:
        return 1 / (1 - self.beta1**self.step)

    @property
    def square_correction(self) -> float:
        return 1 / (1 - self.beta2**self.step)

    @property
    def smallest_square(self) -> float:
        """Below it a squared gradient is not compared with its mean."""
        return max(self.epsilon**2, 1e-37)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Lets an update through only while every gradient so far was finite, and limits its size.

    Everything is decided on the device, so nobody waits for it. Entry k belongs to the k-th update of a step.
    """

    is_finite: Tensor
    """[P + 1] float32: 1 if the loss and the gradients of all updates before the k-th were finite, else 0."""
    square_norm: Tensor
    """[P] float32, the gradient's squared length."""
    position: int
    """k of this update."""
    max_rms: float
    """The learning rate of a parameter is divided by RMS(gradient / sqrt(mean square)) / max_rms where that is more
    than 1 (StableAdamW, Wortsman et al., arXiv:2304.13013); inf turns it off."""


def new_guard_tensors(num_parameters: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`is_finite` and `square_norm` for the updates of a step."""
    return torch.ones(num_parameters + 1, device=device), torch.zeros(num_parameters, device=device)
