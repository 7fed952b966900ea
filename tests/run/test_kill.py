"""A training process that is really killed loses nothing but the steps after its last checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.cli.main import main
from safetensors.torch import load_file

from ..training_setup import Setup

pytestmark = pytest.mark.process


def write_workflow(folder: Path) -> Path:
    """Caches and 12 steps with a checkpoint every second step."""
    nodes = {
        "1": {"class_type": "Lumina2Load", "inputs": {"base": "tiny.safetensors", "precision": "fp32"}},
        "2": {"class_type": "Lumina2DatasetFolder", "inputs": {"folder": "pictures", "resolution": 64}},
        "3": {"class_type": "Lumina2CacheLatents", "inputs": {"model": ["1", 0], "dataset": ["2", 0]}},
        "4": {"class_type": "Lumina2CacheTextEmbeds", "inputs": {"model": ["1", 0], "dataset": ["2", 0]}},
        "5": {"class_type": "Lumina2Checkpoints", "inputs": {"checkpoint_step_interval": 2}},
        "6": {
            "class_type": "Lumina2TrainLoRA",
            "inputs": {
                "model": ["1", 0],
                "latents": ["3", 0],
                "embeds": ["4", 0],
                "checkpoints": ["5", 0],
                "steps": 12,
                "rank": 2,
                "run_name": "killed",
            },
        },
    }
    path = folder / "workflow.json"
    path.write_text(json.dumps(nodes))
    return path


def test_killed_run_goes_on_to_the_same_result(setup: Setup, tmp_path: Path) -> None:
    root = setup.context.roots[0]
    models = tmp_path / "models"
    models.mkdir()
    (models / "checkpoints").symlink_to(root / "checkpoints")
    common = ["run", str(write_workflow(tmp_path)), "--device", "cpu", "--root", str(root), "--models", str(models)]
    assert main([*common, "--output", str(tmp_path / "whole")]) == 0

    run_dir = tmp_path / "killed" / "lumina2_trainer" / "killed"
    arguments = [*common, "--output", str(tmp_path / "killed")]
    process = subprocess.Popen([sys.executable, "-m", "lumina2_trainer", *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(run_dir.glob("checkpoints/step-000004/training_state.json")):
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (run_dir / "final").exists(), "training was over before it was killed"

    assert main(arguments) == 0
    whole = tmp_path / "whole" / "lumina2_trainer" / "killed"
    losses = [
        [json.loads(line)["loss"] for line in (d / "log.jsonl").read_text().splitlines()] for d in (run_dir, whole)
    ]
    assert losses[0] == losses[1]
    final = [load_file(d / "final" / "adapter.safetensors") for d in (run_dir, whole)]
    assert all(torch.equal(final[0][name], tensor) for name, tensor in final[1].items())
