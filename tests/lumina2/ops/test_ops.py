"""The operations, by triton and plain, against their formulas; without a GPU, triton's interpreter runs the kernels.

The interpreter is switched on by an environment variable that triton reads when it is imported, so the comparison has a
process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.ops.ops import has_triton

pytestmark = pytest.mark.process


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
@pytest.mark.parametrize(("script", "count"), [("compare_fused_ops.py", 13), ("compare_feed_forward.py", 19)])
def test_fused_operations_equal_plain_pytorch(script: str, count: int) -> None:
    is_interpreted = not torch.cuda.is_available()
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if is_interpreted else {})}
    command = [sys.executable, str(Path(__file__).with_name(script)), "cpu" if is_interpreted else "cuda"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{count} comparisons" in done.stdout
