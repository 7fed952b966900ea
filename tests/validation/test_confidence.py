"""95% intervals against tables and by simulation."""

from __future__ import annotations

import random

import pytest
from lumina2_trainer.trainer_core.validation.confidence import estimate_change, estimate_mean, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_interval_holds_the_mean_in_95_of_100_cases() -> None:
    rng = random.Random(0)
    estimates = [estimate_mean([rng.gauss(3.0, 2.0) for _ in range(4)]) for _ in range(4000)]
    share = sum(abs(estimate.mean - 3.0) < estimate.margin for estimate in estimates) / len(estimates)
    assert share == pytest.approx(0.95, abs=0.012)


def test_change_is_paired_by_picture() -> None:
    before = {"a": 0.1, "b": 0.5, "c": 0.9}
    change = estimate_change(before, {"c": 0.86, "a": 0.07, "b": 0.45})
    assert change.mean == pytest.approx(-0.04)
    # Differences -0.03, -0.05, -0.04: standard deviation 0.01, and t of 2 degrees is 4.3027.
    assert change.margin == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert change.margin < estimate_mean(list(before.values())).margin / 10
