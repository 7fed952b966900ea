"""The demo model's autoencoder: 16 channels, 8 times smaller, no quant convolutions, as Flux's; trained from nothing.

The latents get noise of a tenth of their spread in training, and a penalty holds each channel near mean 0 and
variance 1. That takes the place of the usual KL term: no channel dies, and the decoder forgives small errors of the
transformer.

Shape suffixes: N and B pictures, C channels, H height, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

SCALING_FACTOR = 0.3611
SHIFT_FACTOR = 0.1159
"""Flux's: a latent is scaled as (z - shift) * scaling."""
LATENT_NOISE = 0.1
"""Standard deviation in units of the latents' own."""
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
DECODER_LEARNING_RATE = 3e-4
EDGE_WEIGHT = 0.5
SPREAD_WEIGHT = 0.05


def make_autoencoder() -> AutoencoderKL:
    """Random weights; 4.3 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 64, 64, 128),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=32,
        sample_size=128,
        scaling_factor=SCALING_FACTOR,
        shift_factor=SHIFT_FACTOR,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_autoencoder(
    pictures_NCHW: Tensor, noto_count: int, seconds: float, decoder_seconds: float, report: Callable[[str], None]
) -> AutoencoderKL:
    """Train, fix the latents' scale, and settle the decoder on it.

    Args:
        pictures_NCHW: uint8 on the device; Noto's come first.
        noto_count: How many of them are Noto's: their latents get mean 0 and variance 1.
        seconds: For both halves together.
        decoder_seconds: For the decoder alone afterwards.
        report: Takes lines of progress.
    """
    device = pictures_NCHW.device
    vae = make_autoencoder().to(device, memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(0)

    def rebuild(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encoder(x_BCHW).chunk(2, 1)[0]
            noise = torch.randn(mean.shape, generator=generator, device=device) * LATENT_NOISE
            rebuilt = vae.decoder(mean + noise)
        return rebuilt.float(), SPREAD_WEIGHT * spread_penalty(mean.float())

    def decode_only(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                mean = vae.encoder(x_BCHW).chunk(2, 1)[0].float()
            noise = torch.randn(mean.shape, generator=generator, device=device) * LATENT_NOISE / SCALING_FACTOR
            rebuilt = vae.decoder(mean + noise)
        return rebuilt.float(), rebuilt.new_zeros(())

    _fit(list(vae.parameters()), LEARNING_RATE, pictures_NCHW, rebuild, seconds, generator, report)
    fold_scale(vae, pictures_NCHW[:noto_count])
    decoder = list(vae.decoder.parameters())
    _fit(decoder, DECODER_LEARNING_RATE, pictures_NCHW, decode_only, decoder_seconds, generator, report)
    for name, part in (("noto", pictures_NCHW[:noto_count]), ("fluent", pictures_NCHW[noto_count:])):
        report(f"{name}: mean error {100 * mean_error(vae, part):.2f}% of the range")
    return vae


def _fit(
    parameters: list[torch.nn.Parameter],
    learning_rate: float,
    pictures_NCHW: Tensor,
    rebuild: Callable[[Tensor], tuple[Tensor, Tensor]],
    seconds: float,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> None:
    """Adam over random batches until the time is up, the learning rate falling as half a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    started, step, elapsed = time.monotonic(), 0, 0.0
    while elapsed < seconds:
        warmup = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * elapsed / seconds))
        index = torch.randint(len(pictures_NCHW), (BATCH_SIZE,), generator=generator, device=generator.device)
        x_BCHW = augment(to_float(pictures_NCHW[index]), generator).contiguous(memory_format=torch.channels_last)
        rebuilt_BCHW, penalty = rebuild(x_BCHW)
        error = (rebuilt_BCHW - x_BCHW).abs().mean()
        loss = error + EDGE_WEIGHT * edge_error(rebuilt_BCHW, x_BCHW) + penalty
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0 or step == 1:  # waits for the device, so that the clock tells the truth
            value = error.item()
            assert math.isfinite(value), f"autoencoder: error {value} at step {step}"
            elapsed = time.monotonic() - started
            if step % 500 == 0:
                report(f"step {step} {elapsed:.0f}s error {100 * value / 2:.2f}% penalty {penalty.item():.4f}")
    report(f"{step} steps in {elapsed:.0f}s")


def to_float(pictures_BCHW: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pictures_BCHW.float() / 127.5 - 1


def augment(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures as they are, half moved, scaled, mirrored, turned a little, recoloured."""
    count, device = x_BCHW.shape[0], x_BCHW.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    changed_B = uniform(0, 1) < 0.5
    scale_B, angle_B = uniform(0.6, 1.4), uniform(-0.3, 0.3)
    mirror_B = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos_B, sin_B = scale_B * angle_B.cos(), scale_B * angle_B.sin()
    moves = [mirror_B * cos_B, -sin_B, uniform(-0.4, 0.4), mirror_B * sin_B, cos_B, uniform(-0.4, 0.4)]
    grid = F.affine_grid(torch.stack(moves, 1).view(count, 2, 3), list(x_BCHW.shape), align_corners=False)
    moved_BCHW = F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)
    channels_BC = torch.rand(count, 3, generator=generator, device=device).argsort(1)
    recoloured = moved_BCHW.gather(1, channels_BC[:, :, None, None].expand_as(moved_BCHW))
    recoloured = recoloured * torch.where(uniform(0, 1) < 0.2, -1.0, 1.0)[:, None, None, None]
    moved_BCHW = torch.where((uniform(0, 1) < 0.5)[:, None, None, None], recoloured, moved_BCHW)
    return torch.where(changed_B[:, None, None, None], moved_BCHW, x_BCHW)


def edge_error(rebuilt_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Mean difference of the steps between neighbouring pixels: keeps outlines sharp."""
    difference = rebuilt_BCHW - x_BCHW
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def spread_penalty(mean_BCHW: Tensor) -> Tensor:
    """How far each channel is from mean 0 and variance 1 over the batch."""
    variance, centre = torch.var_mean(mean_BCHW, (0, 2, 3))
    return (centre.square() + (variance + 1e-6).log().square()).mean()


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, pictures_NCHW: Tensor) -> None:
    """Change the weights next to the latents so that scaled latents have mean 0 and variance 1 in each channel.

    The rebuilt picture stays the same, but for the borders: there the decoder's zero padding means something else now.
    """
    means = torch.cat([vae.encoder(to_float(x)).chunk(2, 1)[0] for x in pictures_NCHW.split(64)])
    variance_C, centre_C = torch.var_mean(means, (0, 2, 3))
    spread_C = variance_C.sqrt()
    # scaled = (z - centre) / spread, and z' = scaled / SCALING_FACTOR + SHIFT_FACTOR
    factor_C = 1 / (spread_C * SCALING_FACTOR)
    offset_C = SHIFT_FACTOR - centre_C * factor_C
    encoder, decoder, channels = vae.encoder.conv_out, vae.decoder.conv_in, len(factor_C)
    encoder.weight[:channels] *= factor_C[:, None, None, None]
    encoder.bias[:channels] = encoder.bias[:channels] * factor_C + offset_C
    encoder.weight[channels:] = 0  # the posterior's spread is a constant: the noise of training
    encoder.bias[channels:] = 2 * math.log(LATENT_NOISE / SCALING_FACTOR)
    decoder.bias += torch.einsum("ocij,c->o", decoder.weight, -offset_C / factor_C)
    decoder.weight /= factor_C[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures_NCHW: Tensor) -> Tensor:
    """uint8 pictures -> [N, 16, 16, 16] float32 scaled latents, the posterior's mode."""
    means = [vae.encode(to_float(x)).latent_dist.mode() for x in pictures_NCHW.split(64)]
    return (torch.cat(means).float() - SHIFT_FACTOR) * SCALING_FACTOR


@torch.no_grad()
def decode(vae: AutoencoderKL, latents_NCHW: Tensor) -> Tensor:
    """Scaled latents -> uint8 pictures."""
    parts = [vae.decode(z / SCALING_FACTOR + SHIFT_FACTOR).sample for z in latents_NCHW.split(64)]
    return (torch.cat(parts).float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def mean_error(vae: AutoencoderKL, pictures_NCHW: Tensor) -> float:
    """Mean absolute error of rebuilding, as a share of the range."""
    rebuilt = decode(vae, encode(vae, pictures_NCHW))
    return float((rebuilt.float() - pictures_NCHW.float()).abs().mean() / 255)
