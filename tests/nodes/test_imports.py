"""What importing costs: ComfyUI imports every pack at its start."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("diffusers", "transformers", "peft", "accelerate", "lycoris", "sentencepiece")


def test_importing_the_steps_loads_no_heavy_library() -> None:
    code = f"""
import pytest
import sys, torch
import lumina2_trainer.trainer_core.steps

pytestmark = pytest.mark.process
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
