"""Runs in the host: its network, CLIP and VAE on the files and inputs that the test wrote into a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.sd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from host_models import build_clip, build_model


def predict_velocities(
    weights: dict[str, Tensor], sizes: dict[str, Any], samples: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The velocity of `latents.<i>` with `embeds.<i>` at time `t.<i>`, as "<i>"."""
    network = build_model(sizes, weights).diffusion_model
    velocities = {}
    for i in range(len(samples) // 3):
        embeds = samples[f"embeds.{i}"][None]
        # The host's network takes sigma and gives noise - latents.
        out = network(samples[f"latents.{i}"][None], 1 - samples[f"t.{i}"][None], embeds, num_tokens=embeds.shape[1])
        velocities[str(i)] = -out[0].contiguous()
    return velocities


def encode_prompts(weights: dict[str, Tensor], prompts: list[str]) -> tuple[dict[str, Tensor], list[int]]:
    """The embeddings of each prompt, as "<i>", and how many tokens it has."""
    clip = build_clip(weights)
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    embeds = {str(i): clip.encode_from_tokens(t)[0].float().contiguous() for i, t in enumerate(tokens)}
    return embeds, [len(t["gemma2_2b"][0]) for t in tokens]


def run_vae(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encode `pixels` ([B, 3, H, W] in [-1, 1]) and decode `latents` (as the network has them)."""
    vae = comfy.sd.VAE(weights, dtype=torch.float32)
    scale = comfy.latent_formats.Flux()
    latents = scale.process_in(vae.encode((inputs["pixels"].movedim(1, -1) + 1) / 2))
    pixels = vae.decode(scale.process_out(inputs["latents"])).movedim(-1, 1)
    return {"latents": latents.contiguous(), "pixels": pixels.contiguous()}


@torch.no_grad()
def main(folder_path: str) -> dict[str, Any]:
    folder = Path(folder_path)
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    velocities = predict_velocities(
        load_file(folder / "transformer.safetensors"), facts["sizes"], load_file(folder / "samples.safetensors")
    )
    save_file(velocities, folder / "velocities.safetensors")
    embeds, num_tokens = encode_prompts(load_file(folder / "text_encoder.safetensors"), facts["prompts"])
    save_file(embeds, folder / "embeds.safetensors")
    vae_out = run_vae(load_file(folder / "vae.safetensors"), load_file(folder / "vae_inputs.safetensors"))
    save_file(vae_out, folder / "vae_outputs.safetensors")
    return {"num_tokens": num_tokens}
