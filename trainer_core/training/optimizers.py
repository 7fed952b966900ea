"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from .settings import OptimizerSettings

ParameterGroups = Iterable[Any]
"""Parameters, or groups of them, as every optimizer of PyTorch takes them."""


def adamw(
    groups: ParameterGroups, learning_rate: float, settings: OptimizerSettings, seed: int
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101), PyTorch's own; fused on CUDA."""
    groups = list(groups)
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=all(p.is_cuda for p in _flatten(groups)) or None,
    )


def adamw8bit(
    groups: ParameterGroups, learning_rate: float, settings: OptimizerSettings, seed: int
) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits and stochastic rounding of bfloat16 weights; see `adamw_8bit.py`."""
    from .adamw_8bit import AdamW8bit

    return AdamW8bit(
        groups,
        lr=learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        seed=seed,
        is_state_on_host=settings.optimizer_state == "host",
    )


def adamw_state_bytes(numel: int, itemsize: int, settings: OptimizerSettings) -> int:
    """Two moments in the parameter's dtype."""
    return 2 * numel * itemsize


def adamw8bit_state_bytes(numel: int, itemsize: int, settings: OptimizerSettings) -> int:
    """Two moments of 8 bits, unless they are in host memory."""
    from .moments import moments_size

    return 0 if settings.optimizer_state == "host" else moments_size(numel)


def _flatten(groups: Iterable[Any]) -> list[nn.Parameter]:
    return [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]


OPTIMIZERS: dict[str, Callable[[ParameterGroups, float, OptimizerSettings, int], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
}
"""Each takes parameters or groups of them, learning rate, settings, and the seed of random rounding."""

OPTIMIZER_STATE_BYTES: dict[str, Callable[[int, int, OptimizerSettings], int]] = {
    "adamw": adamw_state_bytes,
    "adamw8bit": adamw8bit_state_bytes,
}
"""By the names of OPTIMIZERS: bytes on the device for a parameter with this many elements of this size."""

BF16_OPTIMIZERS = frozenset({"adamw8bit"})
"""They train bfloat16 weights without losing small updates; others need float32 weights."""
HOST_STATE_OPTIMIZERS = frozenset({"adamw8bit"})
"""They can keep their state in host memory."""
OPTIMIZER_STATES = ("device", "host")
"""Where the state of an optimizer is kept."""


def decay_groups(parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Two groups: matrices, and norms and biases, which are not decayed."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
