"""Means over few pictures, and how far they can be trusted: 95% intervals from Student's t distribution."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95% confidence interval, mean - margin to mean + margin."""

    mean: float
    margin: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.margin:.4f}"


def estimate_mean(values: Sequence[float]) -> Estimate:
    """The mean of what the values are a sample of; at least two values."""
    margin = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=statistics.fmean(values), margin=margin)


def estimate_change(before: Mapping[str, float], after: Mapping[str, float]) -> Estimate:
    """The mean of the change of each picture: far narrower than the difference of two means, for pictures differ more
    from one another than from themselves.

    Args:
        before: A value of each picture.
        after: The same pictures' values later.
    """
    assert before.keys() == after.keys(), "the two were measured on different pictures"
    return estimate_mean([after[picture] - before[picture] for picture in before])


@functools.cache
def t_quantile(degrees: int) -> float:
    """Student's t that the absolute value stays below with a probability of CONFIDENCE."""
    low, high = 0.0, 1.0
    while _probability_below(high, degrees) < CONFIDENCE:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_below(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _probability_below(t: float, degrees: int) -> float:
    """P(|T| < t), a finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = cosine if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if is_odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
