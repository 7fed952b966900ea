"""What a short script does with diffusers and transformers: one picture, one caption at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lumina2_trainer.trainer_core.data.sizing import list_buckets, nearest_bucket
from lumina2_trainer.trainer_core.lumina2.encoders.prompts import MAX_PROMPT_TOKENS
from lumina2_trainer.trainer_core.lumina2.encoders.text_files import ALL_IN_ONE_TEXT_PREFIX, HEAD_SIZE, find_text_files
from lumina2_trainer.trainer_core.lumina2.encoders.vae import LATENT_SCALE, LATENT_SHIFT, load_vae
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor

PICTURE_SUFFIXES = (".jpg", ".png")


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, in order."""
    return sorted(path for path in folder.iterdir() if path.suffix in PICTURE_SUFFIXES)


@torch.no_grad()
def encode_pictures(
    base_path: Path, folder: Path, output_dir: Path, *, resolution: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Load the VAE, and write `<picture>.safetensors` with its latents for every picture.

    Args:
        base_path: An all-in-one file.
        folder: With pictures.
        output_dir: Where latents go.
        resolution: Side in pixels of the square with the wanted area.
        dtype: Of the weights and the computation.
        device: Where the VAE runs.
    """
    vae = load_vae(base_path, device=device, dtype=dtype)
    output_dir.mkdir(parents=True)
    for path in list_pictures(folder):
        image = Image.open(path).convert("RGB")
        bucket = nearest_bucket(image.width / image.height, list_buckets(resolution), resolution)
        image = ImageOps.fit(image, (bucket.width, bucket.height), Image.Resampling.LANCZOS)
        pixels_HW3 = torch.from_numpy(np.array(image)).to(device)
        pixels_13HW = pixels_HW3.permute(2, 0, 1)[None].float() / 127.5 - 1
        mode = vae.encode(pixels_13HW.to(dtype)).latent_dist.mode()
        latents = (mode[0].float() - LATENT_SHIFT) * LATENT_SCALE
        save_file({"latents": latents.cpu().to(torch.bfloat16)}, output_dir / f"{path.name}.safetensors")


@torch.no_grad()
def encode_captions(
    base_path: Path, folder: Path, output_dir: Path, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Load Gemma2 and its tokenizer, and write `<picture>.safetensors` with its caption's states for every picture.

    Args:
        base_path: An all-in-one file.
        folder: With pictures and captions.
        output_dir: Where embeddings go.
        dtype: Of the weights and the computation.
        device: Where Gemma2 runs.
    """
    encode = _load_gemma(base_path, dtype, device)
    output_dir.mkdir(parents=True)
    for path in list_pictures(folder):
        embeds_LD = encode(path.with_suffix(".txt").read_text("utf-8"))
        save_file({"embeds": embeds_LD.cpu().to(torch.bfloat16)}, output_dir / f"{path.name}.safetensors")


def _load_gemma(base_path: Path, dtype: torch.dtype, device: torch.device) -> Callable[[str], Tensor]:
    from accelerate import init_empty_weights
    from safetensors import safe_open
    from sentencepiece import SentencePieceProcessor
    from transformers import Gemma2Config, Gemma2Model

    files = find_text_files(base_path)
    sizes = files.sizes
    config = Gemma2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        head_dim=HEAD_SIZE,
        query_pre_attn_scalar=HEAD_SIZE,
        attn_logit_softcapping=None,  # as in Cache Text Embeds by default
    )
    with init_empty_weights(include_buffers=False):
        model = Gemma2Model(config)
    with safe_open(base_path, "pt", device=str(device)) as file:
        weights = {
            name.removeprefix(ALL_IN_ONE_TEXT_PREFIX): file.get_tensor(name).to(dtype)
            for name in file.keys()  # noqa: SIM118
            if name.startswith(ALL_IN_ONE_TEXT_PREFIX)
        }
    model.load_state_dict(weights, assign=True)
    model.to(device).eval()
    tokenizer = SentencePieceProcessor(model_proto=files.read_spiece(), add_bos=True)

    def encode(prompt: str) -> Tensor:
        ids = torch.tensor([tokenizer.encode(prompt)[:MAX_PROMPT_TOKENS]], device=device)
        return model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-2][0]

    return encode
