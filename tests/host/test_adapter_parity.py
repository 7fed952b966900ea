"""A trained adapter in the host: every key used, the same output, and the same picture from KSampler."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.export import read_adapter
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.adapters.merge import merge_adapter
from lumina2_trainer.trainer_core.lumina2.encoders.prompts import SYSTEM_PROMPTS, build_prompt
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer
from lumina2_trainer.trainer_core.stages import save, validate
from lumina2_trainer.trainer_core.stages.train import TrainResult
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings
from PIL import Image
from safetensors.torch import load_file, save_file

from ..lumina2.tiny_models import CPU, random_samples, relative_error, run_packed
from ..training_setup import TRAIN, Setup
from .checkouts import Host

SCRIPT = Path(__file__).resolve().parent / "script_adapter.py"
VALIDATE = ValidateSettings(
    prompts="a red square\na blue square, seen from above", width=96, height=64, num_inference_steps=5, strength=0.7
)


@pytest.fixture(scope="module")
def trained(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, TrainResult]:
    """An adapter on every layer that a file can hold, with values far from zero."""
    own = setup.moved_to(tmp_path_factory.mktemp("trained"))
    settings = replace(TRAIN, learning_rate=0.05, steps=4)
    return own, own.train(settings, adapter_settings=LoRASettings(targets="all_linear"))


@pytest.fixture(scope="module")
def compared(
    host: Host, trained: tuple[Setup, TrainResult], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the host made of the adapter, beside what we did."""
    setup, result = trained
    folder = tmp_path_factory.mktemp("host-adapter")
    saved = save.save_adapter(
        save.SaveAdapterSettings(dtype="fp32", name="all"), adapter=result.adapter, context=setup.context
    )
    latents, embeds, timesteps_B = random_samples([(7, 6, 10)])
    save_file({"latents": latents[0], "embeds": embeds[0], "timesteps": timesteps_B}, folder / "inputs.safetensors")
    ours = validate.validate(VALIDATE, model=setup.model, adapter=result.adapter, context=setup.context)
    request = {
        "negative_prompt": VALIDATE.negative_prompt,
        "width": VALIDATE.width,
        "height": VALIDATE.height,
        "seed": VALIDATE.seed,
        "steps": VALIDATE.num_inference_steps,
        "guidance_scale": VALIDATE.guidance_scale,
    }
    prompts = [build_prompt(prompt, SYSTEM_PROMPTS["superior"]) for prompt in VALIDATE.prompt_list]
    facts = {
        "model": dataclasses.asdict(setup.model),
        "adapter": dataclasses.asdict(result.adapter),
        "saved_path": str(saved[0]),
        "strength": VALIDATE.strength,
        "requests": [{**request, "prompt": prompt} for prompt in prompts],
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    usage = host.run(SCRIPT, folder)
    transformer = load_transformer(Path(setup.model.base_path), device=CPU, dtype=torch.float32)
    merge_adapter(transformer, read_adapter(saved[0]).tensors, 1.0)
    return {
        "usage": usage,
        "outputs": load_file(folder / "outputs.safetensors"),
        "velocity": run_packed(transformer, latents, embeds, timesteps_B)[0],
        "pictures": ours.images,
    }


def test_every_key_of_the_saved_file_is_used(compared: dict[str, Any]) -> None:
    usage = compared["usage"]
    assert usage["num_keys"] == 2 * usage["num_patches"] > 80
    assert usage["unused"] == []


def test_patched_network_equals_the_trainers(compared: dict[str, Any]) -> None:
    assert relative_error(compared["outputs"]["velocity"], compared["velocity"]) < 1e-4


def test_ksampler_draws_the_previewed_picture(compared: dict[str, Any]) -> None:
    for number, path in enumerate(compared["pictures"]):
        host_picture = compared["outputs"][str(number)] * 255
        ours = torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).view(host_picture.shape)
        assert host_picture.std() > 5, "a flat picture would show nothing"
        assert (host_picture - ours).abs().max() <= 2
