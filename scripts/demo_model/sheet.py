"""Drawing with the demo model while it trains: a sheet of pictures, and how many are the right ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from diffusers import AutoencoderKL
from lumina2_trainer.trainer_core.lumina2.network.layout import TokenLayout, patchify, unpatchify
from lumina2_trainer.trainer_core.lumina2.sampling import SCHEDULES
from PIL import Image, ImageDraw
from torch import Tensor

from .autoencoder import decode
from .network import TRANSFORMER_CONFIG, DemoNetwork

SHEET_CAPTIONS = (
    *("red apple", "cat face", "dog face", "tiger face", "owl", "penguin", "octopus", "frog"),
    *("pizza", "hamburger", "doughnut", "mushroom", "sunflower", "cactus", "grinning face", "robot"),
    *("rocket", "automobile", "locomotive", "sailboat", "house", "umbrella", "crown", "key"),
    *("guitar", "soccer ball", "light bulb", "camera", "alarm clock", "snowman", "woman astronaut", "blue heart"),
)
"""32 subjects, chosen before any picture was seen."""
NUM_INFERENCE_STEPS = 30
GUIDANCE_SCALE = 4.0
SHIFT = 6.0
LATENT_SIZE = 16


@torch.no_grad()
def sample(
    network: DemoNetwork,
    vocabulary: sentencepiece.SentencePieceProcessor,
    captions: list[str],
    *,
    schedule: str = "comfyui",
    guidance_scale: float = GUIDANCE_SCALE,
    seed: int = 0,
) -> Tensor:
    """Scaled latents [B, 16, 16, 16] of each caption, all at once."""
    make_sigmas, guide = SCHEDULES[schedule]
    device = next(network.parameters()).device
    prompts = vocabulary.encode([*captions, *[""] * len(captions)])
    lengths = tuple(len(prompt) for prompt in prompts)
    token_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    is_token = torch.arange(token_ids.shape[1]) < torch.tensor(lengths)[:, None]
    token_index_L = is_token.flatten().nonzero().flatten().to(device)
    side = LATENT_SIZE // TRANSFORMER_CONFIG.patch_size
    layout = TokenLayout.build(lengths, ((side, side),) * len(prompts), TRANSFORMER_CONFIG.axes_dims, device)
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (len(captions), TRANSFORMER_CONFIG.in_channels, LATENT_SIZE, LATENT_SIZE)
    latents = torch.randn(shape, generator=generator).to(device)
    sigmas = make_sigmas(NUM_INFERENCE_STEPS, SHIFT).tolist()
    with torch.autocast(device.type, torch.bfloat16):
        prompt_embeds_L = network.encode_text(token_ids.to(device)).flatten(0, 1)[token_index_L]
        for sigma, next_sigma in itertools.pairwise(sigmas):
            tokens_TC = torch.cat([patchify(x) for x in latents]).repeat(2, 1)
            timesteps_B = torch.full((len(prompts),), 1 - sigma, device=device)
            velocity_TC = network.transformer(tokens_TC, timesteps_B, prompt_embeds_L, layout).float()
            velocity = torch.stack([unpatchify(v, side, side) for v in velocity_TC.split(side * side)])
            positive, negative = velocity.chunk(2)
            latents = latents + (sigma - next_sigma) * guide(positive, negative, guidance_scale)
    return latents


def recall(drawn_BCHW: Tensor, latents_NCHW: Tensor, indices: Tensor) -> float:
    """Share of drawn pictures that lie nearest to the picture their caption belongs to, among all."""
    nearest = torch.cdist(drawn_BCHW.flatten(1), latents_NCHW.flatten(1)).argmin(1)
    return float((nearest == indices.to(nearest.device)).float().mean())


def write_sheet(path: Path, vae: AutoencoderKL, latents_BCHW: Tensor, captions: list[str], columns: int = 8) -> None:
    """Decode and paste into one picture, each over its caption."""
    pictures = decode(vae, latents_BCHW).permute(0, 2, 3, 1).cpu().numpy()
    write_pictures(path, pictures, captions, columns)


def write_pictures(path: Path, pictures_BHWC: np.ndarray, captions: list[str], columns: int = 8) -> None:
    """Paste into one picture, each over its caption."""
    label_height = 16
    height, width = pictures_BHWC.shape[1:3]
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + label_height)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures_BHWC, captions, strict=True)):
        left, top = index % columns * width, index // columns * (height + label_height)
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.text((left + width / 2, top + height), caption, fill="black", anchor="ma", font_size=11)
    sheet.save(path, optimize=True)
