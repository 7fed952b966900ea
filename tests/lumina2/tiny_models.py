"""Small random models that tests compare with other implementations."""

from __future__ import annotations

import torch
from lumina2_trainer.trainer_core.lumina2.network.layout import TokenLayout, patchify, unpatchify
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from torch import Tensor, nn

CPU = torch.device("cpu")
TINY = Lumina2Config(
    hidden_size=96,
    num_layers=3,
    num_refiner_layers=2,
    num_attention_heads=4,
    num_kv_heads=2,
    cap_feat_dim=40,
    axes_dims=(4, 8, 12),
    mlp_size=512,
)
"""Every size differs from every other where it can, so that a swapped one shows."""


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values, the norms' too, large enough that each one matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
        offset = 1.0 if parameter.ndim == 1 else 0.0
        parameter.data = offset + scale * torch.randn(parameter.shape, generator=generator)
    return module


def tiny_transformer(config: Lumina2Config = TINY, seed: int = 0) -> Lumina2Transformer:
    """Our network with random float32 weights."""
    transformer = Lumina2Transformer(config)
    randomise(transformer, seed)
    return transformer


def random_samples(
    sizes: list[tuple[int, int, int]], cap_feat_dim: int = TINY.cap_feat_dim, seed: int = 1
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Noisy latents, prompt embeddings and times.

    Args:
        sizes: (caption tokens, latent height, latent width) of each sample.
        cap_feat_dim: Width of the embeddings.
        seed: Of the draw.

    Returns:
        [16, height, width] of each sample, [tokens, cap_feat_dim] of each sample, [B] times.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(16, height, width, generator=generator) for _, height, width in sizes]
    embeds = [torch.randn(tokens, cap_feat_dim, generator=generator) for tokens, _, _ in sizes]
    return latents, embeds, torch.rand(len(sizes), generator=generator)


def run_packed(
    transformer: Lumina2Transformer, latents: list[Tensor], embeds: list[Tensor], timesteps_B: Tensor
) -> list[Tensor]:
    """Our network over all samples at once.

    Returns:
        Velocity of each sample, shaped as its latents.
    """
    image_sizes = tuple((x.shape[1] // 2, x.shape[2] // 2) for x in latents)
    layout = TokenLayout.build(tuple(len(e) for e in embeds), image_sizes, transformer.config.axes_dims, CPU)
    out = transformer(torch.cat([patchify(x) for x in latents]), timesteps_B, torch.cat(embeds), layout)
    tokens = out.split([rows * columns for rows, columns in image_sizes])
    return [unpatchify(t, *size) for t, size in zip(tokens, image_sizes, strict=True)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
