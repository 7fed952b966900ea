"""Every kind of adapter in the host: every key used, and the same effect at full and at lower strength."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.export import AdapterFile, write_adapter
from lumina2_trainer.trainer_core.adapters.merge import merge_adapter
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapters.test_kinds import VARIANTS, attach, export, scatter
from ..lumina2.tiny_models import CPU, random_samples, run_packed
from ..training_setup import Setup
from .checkouts import Host

SCRIPT = Path(__file__).resolve().parent / "script_adapter_kinds.py"
STRENGTH = 0.6
MAX_ERROR = 1e-3


def load_base(setup: Setup) -> Lumina2Transformer:
    return load_transformer(Path(setup.model.base_path), device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def files(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A saved file of each kind, and what our network makes of it."""
    folder = tmp_path_factory.mktemp("kinds")
    latents, embeds, timesteps_B = random_samples([(7, 6, 10)])
    save_file({"latents": latents[0], "embeds": embeds[0], "timesteps": timesteps_B}, folder / "inputs.safetensors")
    sample = (latents, embeds, timesteps_B)
    paths, ours = {}, {"base": run_packed(load_base(setup), *sample)[0]}
    with torch.no_grad():
        for number, (name, settings) in enumerate(VARIANTS.items()):
            transformer, parameters = attach(settings, load_base(setup))
            scatter(parameters)
            tensors = export(settings, transformer, parameters)
            adapter = AdapterFile(tensors=tensors, metadata={})
            paths[name] = str(write_adapter(adapter, folder, f"kind{number}", "comfyui", "fp32"))
            ours[f"{name}/1.0"] = run_packed(transformer.eval(), *sample)[0]
            merged = load_base(setup)
            merge_adapter(merged, tensors, STRENGTH)
            ours[f"{name}/{STRENGTH}"] = run_packed(merged, *sample)[0]
    facts = {"model": dataclasses.asdict(setup.model), "files": paths, "strength": STRENGTH}
    (folder / "facts.json").write_text(json.dumps(facts))
    return {"folder": folder, "ours": ours, "paths": paths}


@pytest.fixture(scope="module")
def compared(host: Host, files: dict[str, Any]) -> dict[str, Any]:
    """The same by the host."""
    report = host.run(SCRIPT, files["folder"])
    return {**files, **report, "theirs": load_file(files["folder"] / "outputs.safetensors")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_key_is_used(compared: dict[str, Any], variant: str) -> None:
    usage = compared["usages"][variant]
    assert usage["num_patches"] == 7 * 5 + 5
    assert usage["unused"] == []
    assert compared["errors"] == []


@pytest.mark.parametrize("strength", [1.0, STRENGTH])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_effect_is_the_same(compared: dict[str, Any], variant: str, strength: float) -> None:
    def effect(outputs: dict[str, Tensor]) -> Tensor:
        return outputs[f"{variant}/{strength}"] - outputs["base"]

    ours, theirs = effect(compared["ours"]), effect(compared["theirs"])
    assert ours.norm() > 0.01 * compared["ours"]["base"].norm(), "an adapter without effect would show nothing"
    assert (theirs - ours).norm() < MAX_ERROR * ours.norm()
