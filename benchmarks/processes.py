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
    lines, error = run_for_lines(script, arguments, timeout_seconds, environment)
    return {"error": error} if error else json.loads(lines[-1])


def run_for_lines(
    script: str, arguments: list[str], timeout_seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[list[str], str]:
    """Run a script; arguments as for `run_alone`.

    Returns:
        The lines it printed, and the last line of its complaint, empty if it ended well.
    """
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, check=False, env=environment
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        return (output if isinstance(output, str) else output.decode()).splitlines(), (
            f"more than {timeout_seconds:.0f} seconds"
        )
    complaint = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
    return done.stdout.strip().splitlines(), complaint[-1] if done.returncode else ""


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
