"""Training the demo base itself from a workflow file, without ComfyUI, to a saved model that loads again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.cli.main import main
from lumina2_trainer.trainer_core.context import DEMO_DIR
from lumina2_trainer.trainer_core.lumina2.models.base_files import DEMO_MODEL_PATH
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


def write_workflow(folder: Path) -> Path:
    """Load, caches, three steps of full training with a rollout and the state on the host, and all layouts saved."""
    data = {"model": ["1", 0], "dataset": ["2", 0]}
    train = {
        "model": ["1", 0],
        "latents": ["3", 0],
        "embeds": ["4", 0],
        "optimizer_settings": ["5", 0],
        "rollout": ["10", 0],
    }
    nodes = {
        "1": ("Lumina2Load", {"base": "demo", "precision": "bf16"}),
        "2": ("Lumina2DatasetFolder", {"folder": "pictures", "resolution": 64}),
        "3": ("Lumina2CacheLatents", data),
        "4": ("Lumina2CacheTextEmbeds", data),
        "5": ("Lumina2Optimizer", {"optimizer_state": "host"}),
        "6": ("Lumina2TrainFull", {**train, "steps": 3, "batch_size": 2, "run_name": "full"}),
        "10": ("Lumina2Rollout", {"start_step": 2, "probability": 1.0}),
    }
    for number, layout in enumerate(("all-in-one", "transformer", "diffusers"), start=7):
        nodes[str(number)] = ("Lumina2SaveModel", {"model": ["6", 0], "name": "demo_full", "layout": layout})
    path = folder / "workflow.json"
    path.write_text(json.dumps({i: {"class_type": kind, "inputs": inputs} for i, (kind, inputs) in nodes.items()}))
    return path


def test_workflow_trains_the_demo_base_and_saves_it(tmp_path: Path) -> None:
    pictures = tmp_path / "root" / "pictures"
    pictures.mkdir(parents=True)
    for name in ("bear", "cactus"):
        for ending in (".webp", ".txt"):
            shutil.copy(DEMO_DIR / "dataset" / f"{name}{ending}", pictures)
    command = ["run", str(write_workflow(tmp_path)), "--device", "cpu", "--root", str(pictures.parent)]
    output = tmp_path / "output"
    assert main([*command, "--output", str(output)]) == 0

    final_path = output / "lumina2_trainer" / "full" / "final" / "model.safetensors"
    records = [json.loads(line) for line in (final_path.parent.parent / "log.jsonl").read_text().splitlines()]
    assert [(record["step"], record["num_rolled"]) for record in records] == [(1, 0), (2, 2), (3, 2)]
    saved = [
        output / "checkpoints" / "demo_full_00001.safetensors",
        output / "diffusion_models" / "demo_full_00001.safetensors",
        output / "diffusers" / "demo_full_00001",
    ]
    base, *trained = (
        load_transformer(path, device=CPU, dtype=torch.bfloat16).state_dict()
        for path in (DEMO_MODEL_PATH, final_path, *saved)
    )
    changed = torch.cat([(base[name] != trained[0][name]).flatten() for name in base]).float().mean()
    assert changed > 0.01, "updates of 1e-5 reach some bf16 weights in each step"
    for state in trained[1:]:
        assert all(torch.equal(state[name], weight) for name, weight in trained[0].items())
