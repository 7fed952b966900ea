"""Encodes batches of 8-bit pictures with the VAE as fast as the device allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .encoders.vae import encode_pixels, load_vae
from .encoders.vae_memory import estimate_bytes, free_bytes

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

MAX_GPU_BATCH_PIXELS = 4 * 2**20
"""Four pictures of 1024 x 1024: PyTorch's group norm gives each of a picture's 32 groups one block, and four pictures
fill the multiprocessors of the largest GPUs."""
CPU_BATCH_PIXELS = 2**14
"""One picture of 128 x 128: a larger batch falls out of the cache and is no faster (measured with the demo's VAE)."""
USABLE_SHARE = 0.6
"""Of the free memory; the rest is for cuDNN's workspaces and what else runs on this GPU."""


class LatentEncoder:
    """Turns 8-bit pictures into latents; computes in float32, as pictures are encoded once and trained on for long."""

    def __init__(self, vae: AutoencoderKL, device: torch.device) -> None:
        """Take a float32 VAE; its encoder is changed to take less memory, not to other results."""
        self._vae = vae
        self._device = device
        _activate_in_place(vae.encoder)

    def encode(self, pictures_B3HW: Tensor) -> Tensor:
        """Latents of pictures; on a GPU it returns before they are computed.

        Args:
            pictures_B3HW: [B, 3, H, W] uint8 on the CPU; H and W multiples of 8.

        Returns:
            [B, 16, H / 8, W / 8] float32 on the encoder's device, shifted and scaled for the network.
        """
        if self._device.type == "cuda":
            pictures_B3HW = pictures_B3HW.pin_memory()
        pixels_B3HW = pictures_B3HW.to(self._device, non_blocking=True).float() / 127.5 - 1.0
        # Channels last would spread through the network, and there PyTorch's group norm (2.14) copies twice on a GPU
        # and is 50 times less exact on a CPU.
        return encode_pixels(self._vae, pixels_B3HW.contiguous())

    def choose_batch_size(self, width: int, height: int) -> int:
        """Pictures of a size, in pixels, to encode at once: what is fastest and fits in memory.

        A picture of 1024 x 1024 takes about 3 GiB on a GPU, so that a card with 10 GiB free takes two at once.
        """
        if self._device.type != "cuda":
            return max(1, CPU_BATCH_PIXELS // (width * height))
        affordable = USABLE_SHARE * free_bytes(self._device) / estimate_bytes(self._vae.encoder, height, width, None)
        return max(1, min(MAX_GPU_BATCH_PIXELS // (width * height), int(affordable)))


def load_latent_encoder(path: Path, *, device: torch.device) -> LatentEncoder:
    """Load a VAE to encode with.

    Args:
        path: See `load_vae`.
        device: Where it runs.

    Raises:
        TrainerError: It is not a whole Flux-like VAE.
    """
    return LatentEncoder(load_vae(path, device=device, dtype=torch.float32), device)


def _activate_in_place(encoder: nn.Module) -> None:
    """Spare a copy at full resolution in each block: every activation's input is a norm's output, used once."""
    for module in encoder.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.SiLU(inplace=True))
