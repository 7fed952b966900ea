"""A whole workflow on the command line, with a hub and a tracker that only the environment names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.cli.main import main

from ..training_setup import Setup
from ..workflow.test_file import api_workflow
from .hub_server import HubServer

TOKEN = "hf_OfTheCommandLine"


def write_workflow(folder: Path) -> Path:
    """The tests' workflow with Tracking and Hub Upload on Train LoRA."""
    workflow = api_workflow()
    workflow["8"] = {"class_type": "Lumina2Tracking", "inputs": {"report_to": "wandb", "run_name": "mine"}}
    workflow["9"] = {"class_type": "Lumina2HubUpload", "inputs": {"repo_id": "team/my-lora", "push": "end"}}
    workflow["5"]["inputs"].update(tracking=["8", 0], hub=["9", 0])
    path = folder / "workflow.json"
    path.write_text(json.dumps(workflow))
    return path


@pytest.mark.process
def test_workflow_uploads_and_tracks_by_the_environment(setup: Setup, tmp_path: Path) -> None:
    hub = HubServer(token=TOKEN)
    folder = str(setup.context.roots[0])
    command = [sys.executable, "-m", "lumina2_trainer", "run", str(write_workflow(tmp_path))]
    command += [
        "--models",
        folder,
        "--root",
        folder,
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "WANDB_MODE": "offline",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb_home"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb_home"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    hub.close()
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["team/my-lora"]
    assert repository.is_private
    assert repository.commits == ["from_file, step 3"]
    assert {"README.md", "from_file.safetensors", "pytorch_lora_weights.safetensors"} <= set(repository.files)
    assert f"from_file: step 3 is on the hub: {hub.url}/team/my-lora/commit/" in done.stderr
    run_dir = tmp_path / "out" / "lumina2_trainer" / "from_file"
    assert list((run_dir / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert TOKEN not in done.stdout + done.stderr
    assert not any(TOKEN.encode() in p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_bad_repository_is_named_before_anything_is_read(tmp_path: Path, capsys) -> None:
    path = write_workflow(tmp_path)
    assert main(["run", str(path), "--set", "9.repo_id=a/b/c", "--output", str(tmp_path / "out")]) == 1
    assert "node 9 (Lumina2HubUpload): repo_id is 'a/b/c': write" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
