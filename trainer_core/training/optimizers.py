"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .settings import OptimizerSettings


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101), PyTorch's own; fused on CUDA."""
    parameters = list(parameters)
    return torch.optim.AdamW(
        parameters,
        lr=learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=all(p.is_cuda for p in parameters) or None,
    )


OPTIMIZERS: dict[str, Callable[[Iterable[torch.nn.Parameter], float, OptimizerSettings], torch.optim.Optimizer]] = {
    "adamw": adamw
}
"""Each takes parameters, learning rate and settings."""
