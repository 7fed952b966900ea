"""Runs in the host: files of every kind of adapter on its network."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import torch
from lumina2_trainer.nodes.host_models import load_host_models
from lumina2_trainer.tests.host.script_adapter import apply_file, run_network
from lumina2_trainer.trainer_core.lumina2.models.model_files import Lumina2Model
from safetensors.torch import load_file, save_file


class _Errors(logging.Handler):
    """The host only logs what its adapters fail at."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@torch.no_grad()
def main(folder_path: str) -> dict[str, Any]:
    folder = Path(folder_path)
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    inputs = load_file(folder / "inputs.safetensors")
    bare, _, _ = load_host_models(Lumina2Model(**facts["model"]), None, 1.0)
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    outputs = {"base": run_network(bare, inputs)}
    usages = {}
    for name, path in facts["files"].items():
        patched, usages[name] = apply_file(bare, path)
        outputs[f"{name}/1.0"] = run_network(patched, inputs)
        lora = comfy.utils.load_torch_file(path, safe_load=True)
        weaker, _ = comfy.sd.load_lora_for_models(bare, None, lora, facts["strength"], 0)
        outputs[f"{name}/{facts['strength']}"] = run_network(weaker, inputs)
    save_file(outputs, folder / "outputs.safetensors")
    return {"usages": usages, "errors": errors.messages}
