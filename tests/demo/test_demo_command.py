"""The demo command and the example workflows without ComfyUI, with fewer steps than a user sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core import demo
from lumina2_trainer.trainer_core.cli import main
from lumina2_trainer.trainer_core.context import PACK_DIR
from PIL import Image

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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_without_comfyui(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(path), "--output", str(tmp_path), "--device", "cpu"]
    arguments += ["--set", "Lumina2TrainLoRA.steps=2", "--set", "Lumina2TrainLoRA.batch_size=2"]
    arguments += ["--set", "Lumina2ValidationPrompts.num_inference_steps=2"]
    assert main(arguments) == 0
    assert "needs ComfyUI" in capsys.readouterr().err
    assert list(tmp_path.glob("lumina2_trainer/*/final/adapter.safetensors"))
    saves = "Lumina2SaveAdapter" in path.read_text(encoding="utf-8")
    assert len(list(tmp_path.glob("loras/*.safetensors"))) == (1 if saves else 0)
