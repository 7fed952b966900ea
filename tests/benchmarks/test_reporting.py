"""The benchmark of what reporting costs."""

from __future__ import annotations

from pathlib import Path

from lumina2_trainer.benchmarks.reporting import format_result, measure_reporting


def test_step_and_report_are_measured_apart(tmp_path: Path) -> None:
    result = measure_reporting(tmp_path, 8)
    assert result["report_seconds"] > 0 < result["step_seconds"]
    assert result["shortest_step_seconds"] == result["report_seconds"] / 0.02
    assert "8 steps" in format_result(result)
