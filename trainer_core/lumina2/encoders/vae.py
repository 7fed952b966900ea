"""The VAE: diffusers' AutoencoderKL, loaded from every layout users have, and its latents as Lumina2 sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import TrainerError
from ..weights.module_weights import check_names_and_shapes, check_storage, fill_parameters
from ..weights.weight_files import TensorEntry, read_folder_weights, read_weights
from .vae_memory import compute_in_free_memory
from .vae_names import NUM_LEVELS, is_attention_projection, to_ldm_name
from .vae_sizes import LATENT_CHANNELS, NUM_GROUPS, VaeSizes, infer_sizes
from .vae_strips import StripPlan, run_in_strips

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

ALL_IN_ONE_VAE_PREFIX = "vae."
VAE_SCALE = 2 ** (NUM_LEVELS - 1)
"""Pixels a latent, in each direction."""
LATENT_SCALE = 0.3611
LATENT_SHIFT = 0.1159
"""The Flux VAE's statistics: the network's latents are (z - LATENT_SHIFT) * LATENT_SCALE."""


def check_vae(path: Path) -> None:
    """Check names and shapes of a VAE from the headers alone.

    Raises:
        TrainerError: It is not a whole Flux-like VAE.
    """
    _read_checked(path)


def load_vae(path: Path, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """Load the VAE, frozen and in evaluation mode.

    Args:
        path: All-in-one or VAE `.safetensors` (LDM or diffusers naming), or a diffusers folder.
        device: Where the weights go, one by one.
        dtype: What they are stored as there, and what it computes in.

    Raises:
        TrainerError: It is not a whole Flux-like VAE.
    """
    vae, plan = inspect_vae(path)
    fill_parameters(vae, {name: [entry] for name, entry in plan.items()}, device=device, dtype=dtype)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pixels_B3HW: Tensor) -> Tensor:
    """Latents of pictures: the mode of the posterior, as the original training took it.

    Args:
        vae: From `load_vae`.
        pixels_B3HW: [B, 3, H, W] in [-1, 1]; H and W multiples of 8; any device and dtype.

    Returns:
        [B, 16, H / 8, W / 8] float32 on the VAE's device, shifted and scaled for the network.
    """

    def in_strips(pixels_13HW: Tensor, plan: StripPlan) -> Tensor:
        moments = run_in_strips(vae.encoder, pixels_13HW, plan)
        return (moments if vae.quant_conv is None else vae.quant_conv(moments)).chunk(2, dim=1)[0]

    mode = compute_in_free_memory(
        vae.encoder,
        pixels_B3HW.to(vae.device, vae.dtype),
        whole=lambda pixels: vae.encode(pixels).latent_dist.mode(),
        in_strips=in_strips,
    )
    return (mode.float() - LATENT_SHIFT) * LATENT_SCALE


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures of latents.

    Args:
        vae: From `load_vae`.
        latents: [B, 16, h, w] as the network makes them; any device and dtype.

    Returns:
        [B, 3, 8 h, 8 w] float32 in [0, 1] on the VAE's device.
    """

    def in_strips(z: Tensor, plan: StripPlan) -> Tensor:
        return run_in_strips(vae.decoder, z if vae.post_quant_conv is None else vae.post_quant_conv(z), plan)

    z = latents.to(vae.device, torch.float32) / LATENT_SCALE + LATENT_SHIFT
    sample = compute_in_free_memory(
        vae.decoder, z.to(vae.dtype), whole=lambda z: vae.decode(z).sample, in_strips=in_strips
    )
    return ((sample.float() + 1) / 2).clamp(0, 1)


def inspect_vae(path: Path) -> tuple[AutoencoderKL, dict[str, TensorEntry]]:
    """The VAE on the meta device, and the stored tensor of each of its parameters (diffusers' names).

    Raises:
        TrainerError: It is not a whole Flux-like VAE.
    """
    sizes, stored = _read_checked(path)
    vae = _build_on_meta(sizes)
    return vae, {
        name: replace(stored[to_ldm_name(name)], shape=tuple(parameter.shape))
        for name, parameter in vae.named_parameters()
    }


def _read_checked(path: Path) -> tuple[VaeSizes, dict[str, TensorEntry]]:
    """Sizes, and the stored tensor of each LDM name."""
    what = f"vae {path.name}"
    stored = {}
    for name, entry in _read_entries(path).items():
        if is_attention_projection(name) and len(entry.shape) == 2:
            entry = replace(entry, shape=(*entry.shape, 1, 1))
        stored[to_ldm_name(name)] = entry
    shapes = {name: entry.shape for name, entry in stored.items()}
    sizes = infer_sizes(what, shapes)
    check_names_and_shapes(what, sizes.shapes(), shapes)
    check_storage(what, {name: [entry] for name, entry in stored.items()})
    return sizes, stored


def _read_entries(path: Path) -> Mapping[str, TensorEntry]:
    if path.is_dir():
        if not (path / "vae").is_dir():
            raise TrainerError(f"vae {path.name} is a folder without vae/: choose a diffusers model folder")
        return read_folder_weights(path / "vae").tensors
    weights = read_weights(path)
    inner = weights.select(ALL_IN_ONE_VAE_PREFIX)
    return (inner if inner.tensors else weights).tensors


def _build_on_meta(sizes: VaeSizes) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * NUM_LEVELS,
            up_block_types=("UpDecoderBlock2D",) * NUM_LEVELS,
            block_out_channels=sizes.channels,
            layers_per_block=sizes.layers_per_block,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=NUM_GROUPS,
            scaling_factor=LATENT_SCALE,
            shift_factor=LATENT_SHIFT,
            use_quant_conv=sizes.has_quant_conv,
            use_post_quant_conv=sizes.has_post_quant_conv,
        )
