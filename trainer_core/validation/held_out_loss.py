"""The training loss on samples that are not trained on, with fixed noise and times."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ..lumina2.network.transformer import Lumina2Transformer
from ..lumina2.objective import flow_matching_loss, make_noisy_batch
from ..lumina2.quant.precision import computation
from ..lumina2.timesteps import NoiseSettings, draw_timesteps
from ..processes import ALONE, Processes
from ..seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class HeldOutSample:
    """A picture that is not trained on, at one size."""

    picture: str
    """Identifies the picture; the same at all its sizes."""
    latent_shape: tuple[int, int, int]
    """Channels, rows, columns."""
    load: Callable[[], tuple[Tensor, Tensor]]
    """Its latents [channels, rows, columns] and the text states [tokens, width] of its caption."""


@torch.no_grad()
def held_out_losses(
    transformer: Lumina2Transformer,
    samples: Sequence[HeldOutSample],
    *,
    noise_settings: NoiseSettings,
    precision: str,
    num_draws: int,
    seed: int,
    batch_size: int,
    before_batch: Callable[[], None] = lambda: None,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Measure; calls with the same samples and seed see the same noise and times, so their difference is the model's.

    The loss is the plain mean squared error whatever loss is trained with, so that runs can be compared.

    Args:
        transformer: With or without an adapter.
        samples: At least one.
        noise_settings: Distribution of times, as in training.
        precision: Key of PRECISIONS.
        num_draws: Noise and times drawn for each sample.
        seed: Of noise and times.
        batch_size: Samples shown at once; it changes no result.
        before_batch: Called before each batch; may raise to end the measurement.
        processes: Who share the batches among them; all get the same result, that of one.

    Returns:
        Mean loss of each picture, over its sizes and all draws.
    """
    device = transformer.x_embedder.weight.device
    num_tokens = tuple(rows * columns // 4 for _, rows, columns in (sample.latent_shape for sample in samples))
    was_training = transformer.training
    transformer.eval()
    losses: defaultdict[str, list[float]] = defaultdict(list)
    turns = itertools.cycle(range(processes.count))
    try:
        for draw in range(num_draws):
            generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "held-out", draw))
            timesteps_B = draw_timesteps(noise_settings, num_tokens, generator)
            for first in range(0, len(samples), batch_size):
                batch = samples[first : first + batch_size]
                noises = [torch.randn(sample.latent_shape, generator=generator) for sample in batch]
                if next(turns) != processes.index:
                    continue
                before_batch()
                latents, prompt_embeds = zip(*(sample.load() for sample in batch), strict=True)
                noisy = make_noisy_batch(
                    latents,
                    noises,
                    timesteps_B[first : first + batch_size],
                    prompt_embeds,
                    transformer.config.axes_dims,
                    device,
                )
                with computation(precision, device):
                    loss_B = flow_matching_loss(transformer, noisy)
                for sample, loss in zip(batch, loss_B.tolist(), strict=True):
                    losses[sample.picture].append(loss)
    finally:
        transformer.train(was_training)
    shares = processes.gather(dict(losses))
    pictures = dict.fromkeys(sample.picture for sample in samples)
    return {picture: fmean(loss for share in shares for loss in share.get(picture, ())) for picture in pictures}
