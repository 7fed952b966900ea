"""The benchmark of precisions on the demo, in two steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.benchmarks.precisions import format_row, measure


def test_a_precision_is_trained_and_measured_on_equal_noise(tmp_path: Path) -> None:
    exact, rounded = (measure(name, 2, 1, tmp_path) for name in ("fp32", "int8"))
    assert rounded["before"] == pytest.approx(exact["before"], rel=0.01)
    assert rounded["after"] == pytest.approx(exact["after"], rel=0.01)
    assert rounded["before"] != exact["before"] and exact["after"] != exact["before"]
    name, before, after, spread, difference, seconds = format_row("int8", rounded, exact).split()
    assert (name, float(spread)) == ("int8", 0.0)
    assert float(difference) == pytest.approx(rounded["after"][0] - exact["after"][0], abs=1e-4)
    assert float(before) > float(after) > 0 and float(seconds) > 0
