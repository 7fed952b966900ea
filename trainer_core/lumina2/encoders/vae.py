"""The VAE: diffusers' AutoencoderKL, loaded from every layout users have, and its latents as Lumina2 sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import TrainerError
from ..weights.module_weights import check_names_and_shapes, check_storage, fill_parameters
from ..weights.weight_files import TensorEntry, read_folder_weights, read_weights
from .vae_memory import compute_in_free_memory, estimate_bytes, free_bytes
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
