"""The demo model as it lies in the pack: it loads, it is small, it draws what it was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lumina2_trainer.trainer_core.context import DEMO_DIR
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import TextEncoder, load_text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.vae import decode_latents, encode_pixels, load_vae
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.sampling import initial_noise, sample_latents
from PIL import Image

PATH = DEMO_DIR / "lumina2-demo.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transformer() -> Lumina2Transformer:
    return load_transformer(PATH, device=CPU, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    return load_text_encoder(PATH, device=CPU, dtype=torch.float32, text_attention="comfyui")


def test_file_is_at_most_40_megabytes() -> None:
    assert PATH.stat().st_size <= 40_000_000


def test_transformer_has_about_12_million_parameters(transformer: Lumina2Transformer) -> None:
    num_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    assert 11_500_000 < num_parameters < 12_500_000
    assert transformer.config.axes_dims == (24, 20, 20)


@pytest.mark.parametrize("prompt", ["red apple", "\u0932\u093e\u0932 \u0938\u0947\u092c", "\u82f9\u679c \U0001f34e"])
def test_vocabulary_encodes_any_language_without_unknown_tokens(text_encoder: TextEncoder, prompt: str) -> None:
    token_ids = text_encoder.tokenizer.encode(prompt)
    assert token_ids[0] == 2
    assert 3 not in token_ids
    assert text_encoder.tokenizer.decode(token_ids) == prompt


def test_vae_rebuilds_the_dataset_within_two_percent() -> None:
    vae = load_vae(PATH, device=CPU, dtype=torch.float32)
    for path in sorted((DEMO_DIR / "held_out").glob("*.webp")):
        with Image.open(path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
        latents = encode_pixels(vae, pixels)
        rebuilt = decode_latents(vae, latents)
        assert float((rebuilt - (pixels + 1) / 2).abs().mean()) < 0.02, path.name
        assert 0.6 < float(latents.std()) < 1.4, path.name


@pytest.mark.parametrize(("caption", "channel"), [("red apple", 0), ("green heart", 1), ("blue heart", 2)])
def test_known_caption_gives_its_colour_on_white(
    transformer: Lumina2Transformer, text_encoder: TextEncoder, caption: str, channel: int
) -> None:
    positive, negative = text_encoder.encode([caption, ""])
    latents = sample_latents(
        transformer,
        positive,
        negative,
        initial_noise(0, 16, 16, 16),
        schedule="comfyui",
        num_inference_steps=30,
        guidance_scale=4.0,
        shift=6.0,
    )
    vae = load_vae(PATH, device=CPU, dtype=torch.float32)
    picture_3HW = decode_latents(vae, latents[None])[0]
    assert picture_3HW[:, :4, :4].mean() > 0.95
    assert int(picture_3HW[:, 54:74, 54:74].mean((1, 2)).argmax()) == channel
