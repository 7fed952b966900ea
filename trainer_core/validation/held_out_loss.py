"""The training loss on samples that are not trained on, with fixed noise and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batches import derive_seed
from ..lumina2.objective import flow_matching_loss, make_noisy_batch
from ..lumina2.precision import computation
from ..lumina2.timesteps import NoiseSettings, draw_timesteps
from ..lumina2.transformer import Lumina2Transformer


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Mean over samples and draws, and its standard error over draws."""

    mean: float
    standard_error: float


@torch.no_grad()
def held_out_loss(
    transformer: Lumina2Transformer,
    latents: Sequence[Tensor],
    prompt_embeds: Sequence[Tensor],
    *,
    noise_settings: NoiseSettings,
    precision: str,
    num_draws: int,
    seed: int,
) -> HeldOutLoss:
    """Measure; two calls with the same seed see the same noise and times, so their difference is the model's.

    Args:
        transformer: With or without an adapter.
        latents: [channels, height, width] of each sample.
        prompt_embeds: [tokens, width] of each sample.
        noise_settings: Distribution of times, as in training.
        precision: Key of PRECISIONS.
        num_draws: Noise and times drawn for each sample.
        seed: Of noise and times.
    """
    device = transformer.x_embedder.weight.device
    num_tokens = tuple(x.shape[-2] * x.shape[-1] // 4 for x in latents)
    was_training = transformer.training
    transformer.eval()
    means = []
    for draw in range(num_draws):
        generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "held-out", draw))
        timesteps_B = draw_timesteps(noise_settings, num_tokens, generator)
        noise = [torch.randn(x.shape, generator=generator) for x in latents]
        batch = make_noisy_batch(latents, noise, timesteps_B, prompt_embeds, transformer.config.axes_dims, device)
        with computation(precision, device):
            means.append(flow_matching_loss(transformer, batch).mean())
    transformer.train(was_training)
    mean_N = torch.stack(means).double()
    return HeldOutLoss(mean=mean_N.mean().item(), standard_error=(mean_N.std() / num_draws**0.5).item())
