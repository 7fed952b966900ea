"""Timing a step and the memory it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

NUM_WARMUP_STEPS = 4
NUM_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of one case and one trainer."""

    seconds: float
    """Median of the measured steps."""
    fastest: float
    slowest: float
    first_step_seconds: float
    """With everything that happens once, such as compilation."""
    peak_gib: float
    """Most memory allocated on the GPU; 0 without one."""
    loss: float
    """Of a fixed batch before training, to see that the work is the same."""


def measure_steps(step: Callable[[], object], loss: float, device: torch.device) -> Measurement:
    """Run warm-up and measured steps.

    Args:
        step: One optimizer step.
        loss: See `Measurement.loss`.
        device: Waited for around each step.
    """
    seconds = []
    for number in range(NUM_WARMUP_STEPS + NUM_STEPS):
        if number == NUM_WARMUP_STEPS and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _wait(device)
        started = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    measured = seconds[NUM_WARMUP_STEPS:]
    return Measurement(
        seconds=statistics.median(measured),
        fastest=min(measured),
        slowest=max(measured),
        first_step_seconds=seconds[0],
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
        loss=loss,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a large bf16 matrix product with random values: what this card can do at best."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - started) / 1e12
