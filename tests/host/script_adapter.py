"""Runs in the host: an adapter's files on its network, and pictures by its KSampler."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import nodes
import torch
from lumina2_trainer.nodes.host_models import load_host_models
from lumina2_trainer.trainer_core.lumina2.models.model_files import Lumina2Model
from lumina2_trainer.trainer_core.run.job import Adapter
from safetensors.torch import load_file, save_file


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def apply_file(host_model: Any, path: str) -> tuple[Any, dict[str, Any]]:
    """Load a LoRA file with the host's own loader, and tell how much of it was used."""
    lora = comfy.utils.load_torch_file(path, safe_load=True)
    key_map = comfy.lora.model_lora_keys_unet(host_model.model, {})
    warnings = _Warnings()
    logging.getLogger().addHandler(warnings)
    num_patches = len(comfy.lora.load_lora(dict(lora), key_map))
    patched, _ = comfy.sd.load_lora_for_models(host_model, None, lora, 1.0, 0)
    logging.getLogger().removeHandler(warnings)
    unused = [message for message in warnings.messages if "not loaded" in message.lower()]
    return patched, {"num_keys": len(lora), "num_patches": num_patches, "unused": unused}


def run_network(host_model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Velocity of one sample with the patches applied."""
    comfy.model_management.load_models_gpu([host_model], force_full_load=True)
    embeds = inputs["embeds"][None]
    network = host_model.model.diffusion_model
    out = network(inputs["latents"][None], 1 - inputs["timesteps"], embeds, num_tokens=embeds.shape[1])
    return -out[0].contiguous()


def draw(models: tuple[Any, Any, Any], request: dict[str, Any]) -> torch.Tensor:
    """One picture by the host's own nodes: CLIP Text Encode, KSampler, VAE Decode."""
    model, clip, vae = models
    positive = nodes.CLIPTextEncode().encode(clip, request["prompt"])[0]
    negative = nodes.CLIPTextEncode().encode(clip, request["negative_prompt"])[0]
    size = (1, 16, request["height"] // 8, request["width"] // 8)
    latents = nodes.common_ksampler(
        model,
        request["seed"],
        request["steps"],
        request["guidance_scale"],
        "euler",
        "simple",
        positive,
        negative,
        {"samples": torch.zeros(size)},
    )[0]
    return nodes.VAEDecode().decode(vae, latents)[0][0].contiguous()


@torch.no_grad()
def main(folder_path: str) -> dict[str, Any]:
    folder = Path(folder_path)
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    model, adapter = Lumina2Model(**facts["model"]), Adapter(**facts["adapter"])
    bare, _, _ = load_host_models(model, None, 1.0)
    patched, usage = apply_file(bare, facts["saved_path"])
    velocity = run_network(patched, load_file(folder / "inputs.safetensors"))
    models = load_host_models(model, adapter, facts["strength"])
    pictures = {str(i): draw(models, request) for i, request in enumerate(facts["requests"])}
    save_file({"velocity": velocity, **pictures}, folder / "outputs.safetensors")
    return usage
