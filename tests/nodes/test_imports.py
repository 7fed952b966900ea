"""What importing costs: ComfyUI imports every pack at its start."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

HEAVY = ("diffusers", "transformers", "peft", "accelerate", "lycoris", "sentencepiece")


def test_importing_the_steps_loads_no_heavy_library() -> None:
    code = f"""
import sys, torch
import lumina2_trainer.trainer_core.stages.caches
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
