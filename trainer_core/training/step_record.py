"""What is known of an optimizer step, and of the samples in it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..lumina2.objective import loss_by_timestep_bin
from .batch_builder import TrainingBatch

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened in one optimizer step; a line of log.jsonl."""

    step: int
    loss: float
    loss_by_bin: dict[int, float]
    """Mean loss by bin of t (20 bins, 0 is the noisiest), of the bins that had a sample."""
    learning_rate: float
    grad_norm: float
    """Of all gradients together, before clipping."""
    seconds: float
    peak_memory_gib: float
    """Of the main process."""
    epoch: int
    files: list[str]
    """Ids of the samples of the batch."""
    low_resolution_loss: float | None = None
    """Mean of the second loss, see `low_resolution.py`; it is in none of the numbers above but grad_norm."""
    num_rolled: int | None = None
    """Samples of the step that came from the model itself; None without a rollout."""


@dataclass(kw_only=True)
class StepSamples:
    """The samples of a step, in the order they were trained on."""

    losses: list[float] = field(default_factory=list)
    """Known once the device is done."""
    timesteps: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    is_extra: list[bool] = field(default_factory=list)
    """Which are those of the second loss."""
    num_rolled: int = 0
    wishes: frozenset[str] = frozenset()
    """What any of the processes was asked meanwhile."""

    def add(self, batch: TrainingBatch) -> None:
        """The samples of one more batch."""
        self.timesteps += batch.timesteps_B.tolist()
        self.ids += batch.ids
        self.is_extra += batch.is_extra
        self.num_rolled += batch.num_rolled

    @classmethod
    def joined(cls, parts: Iterable[StepSamples]) -> StepSamples:
        """Of several processes, one after another, before their losses are known."""
        joined = cls()
        for part in parts:
            joined.timesteps += part.timesteps
            joined.ids += part.ids
            joined.is_extra += part.is_extra
            joined.num_rolled += part.num_rolled
            joined.wishes |= part.wishes
        return joined

    @property
    def files(self) -> list[str]:
        """Ids of the samples themselves."""
        return self._own(self.ids)

    @property
    def loss(self) -> float:
        """Mean over the samples themselves."""
        return statistics.fmean(self._own(self.losses))

    @property
    def loss_by_bin(self) -> dict[int, float]:
        """Mean loss by bin of t."""
        return loss_by_timestep_bin(self._own(self.losses), self._own(self.timesteps))

    @property
    def low_resolution_loss(self) -> float | None:
        """Mean of the second loss, if there is one."""
        extra = list(itertools.compress(self.losses, self.is_extra))
        return statistics.fmean(extra) if extra else None

    def _own(self, values: Sequence[T]) -> list[T]:
        return [value for value, is_extra in zip(values, self.is_extra, strict=True) if not is_extra]
