"""The table of step times, row by row."""

from __future__ import annotations

from typing import Any

MAX_LOSS_DIFFERENCE = 0.001
"""Relative; beyond it a row says that the trainer did not do the same work. bfloat16 alone makes about 0.0001."""
COLUMNS = f"{'case':18} {'trainer':10} {'s/step':>8} {'range':>13} {'first':>6} {'GiB':>6} {'loss':>8} {'speed':>6}"


def format_row(case: str, trainer: str, result: dict[str, Any], reference: dict[str, Any]) -> str:
    """One measurement.

    Args:
        case: Its name.
        trainer: Its name.
        result: Fields of a Measurement, or {"error": why there is none}.
        reference: The result that speed and loss are compared with.
    """
    start = f"{case:18} {trainer:10} "
    if "error" in result:
        return start + result["error"]
    spread = f"{result['fastest']:.3f}-{result['slowest']:.3f}"
    difference = result["loss"] / reference["loss"] - 1
    is_equal = abs(difference) <= MAX_LOSS_DIFFERENCE
    return (
        f"{start}{result['seconds']:8.4f} {spread:>13} {result['first_step_seconds']:6.1f} {result['peak_gib']:6.2f}"
        f" {result['loss']:8.5f} {reference['seconds'] / result['seconds']:6.2f}"
        f"{'' if is_equal else f'  LOSS DIFFERS BY {difference:+.2%}'}"
    )
