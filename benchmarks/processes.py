"""Measuring in a process of its own, and what is told of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MACHINE_SCRIPT = str(Path(__file__).parent / "machine.py")
"""Prints what `headline` takes."""


def run_alone(
    script: str, arguments: list[str], timeout_seconds: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a script that prints a JSON object as its last line.

    Args:
        script: Its file.
        arguments: Of the command line.
        timeout_seconds: After which it is ended.
        environment: Of the process; by default this one's.

    Returns:
        What it printed, or {"error": the last line of its complaint}.
    """
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {timeout_seconds:.0f} seconds"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def headline(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    rate = machine["matrix_tflops"]
    return f"{machine['device']}, torch {machine['torch']}" + (
        f", bf16 matrix product {rate:.0f} TFLOP/s" if rate else ""
    )


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Write what is known so far; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
