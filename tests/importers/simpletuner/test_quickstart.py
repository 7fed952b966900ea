"""SimpleTuner's Lumina2 quickstart from its files to a validated, uploaded and saved adapter, without ComfyUI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.adapters.export import read_adapter
from lumina2_trainer.trainer_core.context import DEMO_DIR
from PIL import Image

from ...publish.hub_server import OWNER, HubServer
from ...validation.tiny_clip import write_tiny_clip
from .quickstart_files import LOKR, QUICKSTART, write_files

pytestmark = pytest.mark.process

TOKEN = "hf_OfTheQuickstart"
SMALL = {
    "Lumina2DatasetFolder.resolution": 128,
    "Lumina2DatasetFolder.minimum_image_size": 64,
    "Lumina2DatasetFolder.target_downsample_size": 128,
    "Lumina2ValidationPrompts.width": 128,
    "Lumina2ValidationPrompts.height": 128,
}
"""Sizes of the demo: its pictures are smaller than the quickstart trains on, and a processor is slow."""


def run_command(*arguments: str, environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lumina2_trainer", *arguments]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def surroundings(hub: HubServer, folder: Path) -> dict[str, str]:
    """A hub on this machine, and a tracker that sends nothing."""
    wandb = str(folder / "wandb")
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "WANDB_MODE": "offline",
        "WANDB_CONFIG_DIR": wandb,
        "WANDB_CACHE_DIR": wandb,
    }


def copy_pictures(folder: Path) -> Path:
    """Four captioned pictures of the demo."""
    folder.mkdir()
    for name in ("bear", "fox", "owl", "panda"):
        for ending in ("webp", "txt"):
            shutil.copy(DEMO_DIR / "dataset" / f"{name}.{ending}", folder)
    return folder


@pytest.mark.parametrize("lora_type", ["standard", "lycoris"])
def test_quickstart_trains_validates_uploads_and_saves(tmp_path: Path, lora_type: str) -> None:
    config = write_files(tmp_path / "simpletuner", {**QUICKSTART, "lora_type": lora_type}, lycoris=LOKR)
    workflow, pictures, out = tmp_path / "workflow.json", copy_pictures(tmp_path / "pictures"), tmp_path / "out"
    run_command("import-simpletuner", str(config), "--output", str(workflow))
    changed = {
        "Lumina2Load.base": "demo",
        "Lumina2DatasetFolder.folder": pictures,
        "Lumina2TrainLoRA.steps": 2,
        "Lumina2Checkpoints.checkpoint_step_interval": 1,
        "Lumina2ValidationPrompts.clip_model": write_tiny_clip(tmp_path / "clip"),
        **SMALL,
    }
    if lora_type == "lycoris":
        changed |= {"Lumina2ValidationPrompts.num_inference_steps": 2, "Lumina2TrainLoRA.batch_size": 1}
    assignments = [f"--set={target}={value}" for target, value in changed.items()]
    hub = HubServer(token=TOKEN)
    try:
        environment = surroundings(hub, tmp_path)
        done = run_command(
            "run", str(workflow), "--output", str(out), "--device", "cpu", *assignments, environment=environment
        )
    finally:
        hub.close()
    run_dir = out / "lumina2_trainer" / "lumina2"
    check_run(run_dir, read_json_lines(run_dir / "log.jsonl"))
    check_saved(out / "loras" / "lumina2_00001.safetensors", lora_type)
    assert list((run_dir / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    repository = hub.repositories[f"{OWNER}/lumina2-lora"]
    assert repository.is_private
    assert {"README.md", "lumina2.safetensors", "checkpoints/lumina2-000001.safetensors"} <= set(repository.files)
    assert TOKEN not in done.stdout + done.stderr


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def check_run(run_dir: Path, log: list[dict[str, Any]]) -> None:
    """Two finite steps at the quickstart's learning rate, and scored pictures of the weights, their average and the
    base."""
    *steps, scored = log
    assert [line["step"] for line in steps] == [1, 2]
    assert all(0 < line["loss"] < 100 and line["learning_rate"] == 1e-4 for line in steps)
    assert set(scored["clip_score"]) == {"live", "ema", "base"}
    samples = sorted(path.name for path in (run_dir / "samples" / "step-000002").glob("*.png"))
    assert samples == ["00.png", "00_base.png", "00_ema.png"]
    with Image.open(run_dir / "samples" / "step-000002" / "00.png") as picture:
        assert picture.size == (128, 128)
    assert (run_dir / "final" / "adapter_ema.safetensors").exists()


def check_saved(path: Path, lora_type: str) -> None:
    """What ends in ComfyUI's LoRA folder is the kind of adapter that was asked for, on attention and nothing else."""
    names = read_adapter(path).tensors
    if lora_type == "lycoris":
        assert any(".feed_forward." in name and name.endswith("lokr_w1") for name in names)
        return
    assert all(".attention." in name for name in names)
    ranks = {len(tensor) for name, tensor in names.items() if name.endswith("lora_A.weight")}
    assert ranks == {16}
