"""Runs in the host: its own loaders on files that Save Model wrote, and what their networks compute."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from safetensors.torch import load_file, save_file

SIZES = {
    "vocab_size": 400,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""Of the test's Gemma2, which is smaller than the one that Load Checkpoint expects."""


def run_network(host_model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Velocity of one sample."""
    comfy.model_management.load_models_gpu([host_model], force_full_load=True)
    network = host_model.model.diffusion_model
    embeds, dtype = inputs["embeds"][None], next(network.parameters()).dtype
    out = network(
        inputs["latents"][None].to(dtype), 1 - inputs["timesteps"], embeds.to(dtype), num_tokens=embeds.shape[1]
    )
    return -out[0].float().contiguous()


@torch.no_grad()
def main(folder_path: str, all_in_one_path: str, transformer_path: str) -> dict[str, Any]:
    folder = Path(folder_path)
    inputs = load_file(folder / "inputs.safetensors")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        all_in_one_path, output_vae=True, output_clip=True, te_model_options={"gemma2_2b_model_config": SIZES}
    )
    outputs = {"all_in_one": run_network(model, inputs)}
    outputs["picture"] = vae.decode(inputs["vae_latents"]).movedim(-1, 1).float().contiguous()
    outputs["text"] = clip.encode_from_tokens(clip.tokenize("a red chair"))[0].float().contiguous()
    del model, clip, vae
    outputs["transformer"] = run_network(comfy.sd.load_diffusion_model(transformer_path), inputs)
    save_file(outputs, folder / "outputs.safetensors")
    for name in ("utils.extra_config", "nodes"):  # in this order, as main.py does: nodes.py hides the package utils
        importlib.import_module(name)
    dirs = importlib.import_module("lumina2_trainer.nodes.host").build_context().model_output_dirs
    return {"folders": {kind: str(path) for kind, path in dirs.items()}}
