"""Paths typed on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.cli.headless import find_typed_paths, make_context
from lumina2_trainer.trainer_core.cli.main import main

from ..lumina2.tiny_files import write_all_in_one
from ..training_setup import write_pictures


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it has pictures, a model and a LoRA."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    (tmp_path / "models").mkdir()
    write_all_in_one(tmp_path / "models" / "tiny.safetensors")
    (tmp_path / "models" / "start.safetensors").touch()
    return tmp_path


def test_relative_paths_lead_from_the_current_folder(here: Path) -> None:
    nodes = {
        "1": {"class_type": "Lumina2Load", "inputs": {"precision": "fp32"}},
        "2": {"class_type": "Lumina2DatasetFolder", "inputs": {"resolution": 64}},
    }
    (here / "workflow.json").write_text(json.dumps(nodes))
    paths = ["--set", "1.base=models/tiny.safetensors", "--set", "2.folder=pictures"]
    assert main(["run", "workflow.json", "--device", "cpu", *paths]) == 0


def test_a_lora_to_start_from_may_lie_anywhere(here: Path) -> None:
    typed = find_typed_paths({"8.start_from": "models/start.safetensors"})
    context = make_context(output_dir=here / "out", device="cpu", trusted=typed.values())
    found = context.find_model(("loras",), typed["8.start_from"], "start_from")
    assert found == here / "models" / "start.safetensors"


def test_what_is_no_path_stays_as_typed(here: Path) -> None:
    (here / "demo").mkdir()
    assignments = {"1.base": "demo", "1.vae": "from base", "5.run_name": "pictures", "6.prompt_library": ""}
    assert find_typed_paths(assignments) == {}
    assert find_typed_paths({"6.clip_model": "openai/clip"}) == {"6.clip_model": "openai/clip"}
