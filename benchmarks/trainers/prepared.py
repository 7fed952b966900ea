"""What every trainer is for the measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..measure import Training


@dataclass(frozen=True, kw_only=True)
class PreparedTrainer:
    """A trainer with its weights and samples, before its first step."""

    loss: float
    """Mean squared error of the velocity on the fixed batch."""
    train: Training


def repeat(step: Callable[[], object]) -> Training:
    """A training that makes one step after another."""

    def train(on_step: Callable[[], None]) -> None:
        while True:
            step()
            on_step()

    return train
