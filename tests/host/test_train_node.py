"""The benchmark's way to call the newest host's own Train LoRA node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .checkouts import find_checkouts, open_host, read_version

SCRIPT = Path(__file__).parent / "script_train_node.py"


def version_numbers(checkout: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", read_version(checkout))]


def test_host_node_trains_from_the_same_loss(tmp_path: Path) -> None:
    checkouts = find_checkouts()
    if not checkouts:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to a checkout")
    host = open_host(max(checkouts, key=version_numbers), tmp_path)
    result = host.run(SCRIPT, host.path)
    assert result["num_steps"] == 3
    assert result["loss"] == pytest.approx(result["our_loss"], rel=2e-6)
