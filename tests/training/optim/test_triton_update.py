"""The Triton kernels give the numbers of plain PyTorch, bit for bit where rounding hides the order of operations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).resolve().parent / "script_triton_update.py"


def test_kernels_equal_plain_pytorch() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    # A process of its own: Triton decides whether it interprets when it is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 20
    for case, found in results.items():
        assert found["is_finite"][1:] == [1.0, 0.0], case
        assert found["unequal_moments"] <= 0.002, case
        if "bfloat16" in case:
            assert found["unequal_weights"] <= 0.002, case
        else:
            assert found["largest_difference"] <= 1e-6, case
