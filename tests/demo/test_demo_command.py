"""The demo command and the example workflows without ComfyUI, with fewer steps than a user sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.cli import demo
from lumina2_trainer.trainer_core.cli.main import main
from lumina2_trainer.trainer_core.context import PACK_DIR
from PIL import Image

pytestmark = pytest.mark.train

EXAMPLES = sorted((PACK_DIR / "example_workflows").glob("*.json"))


def test_demo_trains_compares_and_then_reuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TRAIN", replace(demo.TRAIN, steps=2, batch_size=2))
    monkeypatch.setattr(demo, "OPTIMIZER", replace(demo.OPTIMIZER, num_warmup_steps=1))
    monkeypatch.setattr(demo, "NUM_DRAWS", 2)
    arguments = ["demo", "--output", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    for row in ("held-out loss before", "held-out loss after", "seconds", "peak memory", "before and after", "adapter"):
        assert f"\n{row}" in first
    assert "done before" not in first
    with Image.open(tmp_path / "lumina2_trainer" / "demo" / "before_after.png") as comparison:
        assert comparison.height > comparison.width > 300
    assert (tmp_path / "loras" / "demo_fluent3d_00001.safetensors").exists()
    assert main(arguments) == 0
    assert "done before" in capsys.readouterr().out


SHORTER = {
    "Lumina2TrainLoRA": ("steps=2", "batch_size=2"),
    "Lumina2TrainFull": ("steps=2", "batch_size=2"),
    "Lumina2Optimizer": ("num_warmup_steps=1",),
    "Lumina2ValidationPrompts": ("num_inference_steps=2",),
    "Lumina2Compare": ("num_inference_steps=2",),
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_without_comfyui(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types = {node["type"] for node in json.loads(path.read_text("utf-8"))["nodes"]}
    arguments = ["run", str(path), "--output", str(tmp_path), "--device", "cpu"]
    for node, values in SHORTER.items():
        for value in values if node in types else ():
            arguments += ["--set", f"{node}.{value}"]
    assert main(arguments) == 0
    assert "needs ComfyUI" in capsys.readouterr().err
    name = "model" if "Lumina2TrainFull" in types else "adapter"
    (final_path,) = tmp_path.glob(f"lumina2_trainer/*/final/{name}.safetensors")
    assert len(list(tmp_path.glob("loras/*.safetensors"))) == ("Lumina2SaveAdapter" in types)
    assert len(list(tmp_path.glob("checkpoints/*.safetensors"))) == ("Lumina2SaveModel" in types)
    assert len(list(final_path.parents[1].glob("comparisons/*.png"))) == ("Lumina2Compare" in types)
