"""Print the machine as JSON: its device, matrix rate and versions."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from typing import Any

import torch

PACKAGES = ("triton", "diffusers", "peft", "transformers")


def describe_machine() -> dict[str, Any]:
    """The device, its matrix rate and the versions of packages that matter; uses the GPU."""
    has_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else f"CPU, {torch.get_num_threads()} threads",
        "matrix_tflops": matrix_rate(torch.device("cuda")) if has_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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


if __name__ == "__main__":
    print(json.dumps(describe_machine()))
