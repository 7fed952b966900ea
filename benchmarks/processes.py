"""Measuring in a process of its own, and what the machine is."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("triton", "diffusers", "peft", "transformers")


def run_alone(script: str, arguments: list[str], timeout_seconds: float) -> dict[str, Any]:
    """Run a script that prints a JSON object as its last line.

    Args:
        script: Its file.
        arguments: Of the command line.
        timeout_seconds: After which it is ended.

    Returns:
        What it printed, or {"error": the last line of its complaint}.
    """
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {timeout_seconds:.0f} seconds"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def describe_machine() -> dict[str, Any]:
    """The device, its matrix rate and the versions of packages that matter; uses the GPU."""
    import torch

    from .measure import matrix_rate

    has_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else f"CPU, {torch.get_num_threads()} threads",
        "matrix_tflops": matrix_rate(torch.device("cuda")) if has_gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
