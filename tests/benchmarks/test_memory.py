"""The command that compares predicted with measured memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lumina2_trainer.benchmarks import memory
from lumina2_trainer.benchmarks.memory import CASES, format_row


def test_cases_cover_every_way_and_size_of_weights() -> None:
    ways = {case.way for case in CASES.values()}
    assert set(memory.WAYS) < ways
    assert {case.precision for case in CASES.values()} == {"bf16", "fp8", "nf4"}
    assert "fp8-1024-b1-2" in CASES and "1024-b1-keep" in CASES


def test_row_shows_the_error_of_the_prediction() -> None:
    result = {
        "predicted_gib": 11.0,
        "allocated_gib": 10.0,
        "reserved_gib": 10.5,
        "seconds": 0.25,
        "num_graphs": 0,
        "loss": 2.5,
        "plan": "keeping all activations",
    }
    row = format_row("1024-b1-keep", result)
    assert "+10.0%" in row and row.endswith("2.5000  keeping all activations")
    assert "out of memory" in format_row("1024-b1-keep", {"error": "out of memory"})


def test_command_measures_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(memory.__file__)), "--tiny", "--output", str(tmp_path / "r.json")]
    cases = ["512-b2-keep", "512-b2-recompute", "1024-b1-offload"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *cases], capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert all("error" not in result for result in results.values()), results
    losses = [results[name]["loss"] for name in cases[:2]]
    assert abs(losses[0] - losses[1]) < 0.02 * losses[0]
    assert results["512-b2-recompute"]["predicted_gib"] < results["512-b2-keep"]["predicted_gib"]
