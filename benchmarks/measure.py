"""Timing steps and the memory they take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

NUM_WARMUP_STEPS = 4
NUM_STEPS = 8
MIN_WARMUP_STEPS = 2
MIN_STEPS = 3
"""Fewest steps of a slow trainer."""
MAX_SECONDS = 4.0
"""Warm-up after its first step, and measuring, both end after this time if the fewest steps were made."""

Training = Callable[[Callable[[], None]], None]
"""Trains, calling its argument after every optimizer step, until that raises EnoughSteps."""


class EnoughSteps(Exception):
    """Raised into a training to end it."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of one case and one trainer."""

    seconds: float
    """Median of the measured steps."""
    fastest: float
    slowest: float
    num_steps: int
    """That were measured."""
    first_step_seconds: float
    """With everything that happens once, such as compilation."""
    peak_gib: float
    """Most memory allocated on the GPU since the first step; 0 without one. A step that is replayed as a CUDA graph
    allocates nothing, so the warm-up counts."""
    loss: float
    """Of a fixed batch before training, to see that the work is the same."""


class StepClock:
    """Waits for the device after each step and takes the time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.warmup: list[float] = []
        """Seconds of each step before measuring."""
        self.measured: list[float] = []
        """Seconds of each measured step."""
        self._is_warm = False
        self._last = time.perf_counter()

    def tick(self) -> None:
        """A step has been made.

        Raises:
            EnoughSteps: It was the last one to measure.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._last
        if self._is_warm:
            self.measured.append(seconds)
            if _is_enough(self.measured, NUM_STEPS, MIN_STEPS):
                raise EnoughSteps
        else:
            self.warmup.append(seconds)
            if _is_enough(self.warmup[1:], NUM_WARMUP_STEPS - 1, MIN_WARMUP_STEPS - 1):
                self._is_warm = True
        self._last = time.perf_counter()


def _is_enough(seconds: list[float], num_steps: int, min_steps: int) -> bool:
    return len(seconds) >= num_steps or (len(seconds) >= min_steps and sum(seconds) > MAX_SECONDS)


def measure_steps(train: Training, loss: float, device: torch.device) -> Measurement:
    """Time a training after its warm-up.

    Args:
        train: See `Training`.
        loss: See `Measurement.loss`.
        device: Waited for after each step.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = StepClock(device)
    with suppress(EnoughSteps):
        train(clock.tick)
    assert clock.measured, "the training ended by itself before a step was measured"
    return Measurement(
        seconds=statistics.median(clock.measured),
        fastest=min(clock.measured),
        slowest=max(clock.measured),
        num_steps=len(clock.measured),
        first_step_seconds=clock.warmup[0],
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
        loss=loss,
    )
