"""Encoding pictures in batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from lumina2_trainer.trainer_core.lumina2.encoders.vae import load_vae
from lumina2_trainer.trainer_core.lumina2.latent_encoder import LatentEncoder, load_latent_encoder
from torch import Tensor

from ..tiny_files import write_split
from ..tiny_models import CPU, relative_error

PICTURES = torch.randint(0, 256, (5, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vae_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("vae"), "vae")


def reference(path: Path, pictures: Tensor) -> Tensor:
    """diffusers' own VAE as loaded, one picture at a time."""
    vae = load_vae(path, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        means = [vae.encode(picture[None].float() / 127.5 - 1).latent_dist.mean for picture in pictures]
    return (torch.cat(means) - 0.1159) * 0.3611


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_equal_the_vae_picture_by_picture(batch_size: int, vae_path: Path) -> None:
    encoder = load_latent_encoder(vae_path, device=CPU)
    latents = torch.cat([encoder.encode(batch) for batch in PICTURES.split(batch_size)])
    assert latents.dtype == torch.float32
    for actual, expected in zip(latents, reference(vae_path, PICTURES), strict=True):
        assert relative_error(actual, expected) <= 1e-5


def test_layout_of_the_pictures_in_memory_changes_nothing(vae_path: Path) -> None:
    encoder = load_latent_encoder(vae_path, device=CPU)
    channels_last = PICTURES.contiguous(memory_format=torch.channels_last)
    before = channels_last.clone()
    assert torch.equal(encoder.encode(channels_last), encoder.encode(PICTURES))
    assert torch.equal(channels_last, before)


def test_attention_is_pytorchs_own(vae_path: Path) -> None:
    vae = load_vae(vae_path, device=CPU, dtype=torch.float32)
    assert isinstance(vae.encoder.mid_block.attentions[0].processor, AttnProcessor2_0)


def test_small_pictures_share_a_batch_and_large_ones_do_not(vae_path: Path) -> None:
    encoder = LatentEncoder(load_vae(vae_path, device=CPU, dtype=torch.float32), CPU)
    assert encoder.choose_batch_size(64, 64) == 4
    assert encoder.choose_batch_size(128, 128) == 1
    assert encoder.choose_batch_size(1024, 1024) == 1
