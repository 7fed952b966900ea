"""The flow-matching objective of Lumina2.

x_t = (1 - t) * noise + t * latents, target = latents - noise, by default with a plain mean squared error: t runs from 0
(noise) to 1 (image), the opposite of most projects' sigma. Source: Alpha-VLLM/Lumina-Image-2.0, transport/transport.py.

Shape suffixes: B samples, T image tokens of all samples, L caption tokens of all samples, C channels of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import Reflection, measure_error, reflexflow_loss
from .network.layout import PaddedLengths, TokenLayout, patchify
from .network.transformer import Lumina2Transformer
from .timesteps import NoiseSettings

DEFAULT_NOISE = NoiseSettings()
NUM_TIMESTEP_BINS = 20
"""Bins of t in the log, as in the original's training."""


@dataclass(frozen=True, kw_only=True)
class NoisyBatch:
    """What the network is shown and what it should answer."""

    noisy_TC: Tensor
    target_TC: Tensor
    timesteps_B: Tensor
    prompt_embeds_L: Tensor
    layout: TokenLayout
    weights_B: Tensor | None = None
    """What each sample's loss counts; None is their mean."""
    reflection: Reflection | None = None
    """Changes the loss of the samples that the model has rolled itself."""
    loss_weights_TC: Tensor | None = None
    """What each value of an answer counts, with the mean 1 over each sample; None counts all alike."""

    def reduce(self, loss_B: Tensor) -> Tensor:
        """The loss of the batch, from those of its samples."""
        return loss_B.mean() if self.weights_B is None else (loss_B * self.weights_B).sum()


def make_noisy_batch(
    latents: Sequence[Tensor],
    noise: Sequence[Tensor],
    timesteps: Tensor,
    prompt_embeds: Sequence[Tensor],
    axes_dims: tuple[int, ...],
    device: torch.device,
    padded: PaddedLengths | None = None,
    *,
    shown_noise: Sequence[Tensor] | None = None,
    weights: Tensor | None = None,
    loss_weights: Sequence[Tensor] | None = None,
) -> NoisyBatch:
    """Mix latents with noise and pack the samples; all in float32.

    Args:
        latents: Scaled latents of each sample, [channels, height, width]; sizes may differ.
        noise: Standard normal noise of the same shapes.
        timesteps: [B], t from 0 (noise) to 1 (image).
        prompt_embeds: Text encoder states of each sample, [tokens, width], without padding.
        axes_dims: The network's rotary dimensions.
        device: Where the batch is put.
        padded: Tokens that every caption and image is filled up to with zeros; None leaves them as they are.
        shown_noise: What is mixed with the latents, where that is not the noise of the target.
        weights: [B], see NoisyBatch.
        loss_weights: What each place of a sample counts, [1, height, width] from 0 to 1.
    """
    caption_fill, image_fill = (None, None) if padded is None else (padded.caption, padded.image)
    noisy, target = [], []
    for x, n, shown, t in zip(latents, noise, shown_noise or noise, timesteps, strict=True):
        x, n, shown = (patchify(tensor.float()) for tensor in (x, n, shown))
        noisy.append(_fill((1 - t) * shown + t * x, image_fill))
        target.append(_fill(x - n, image_fill))
    return NoisyBatch(
        noisy_TC=torch.cat(noisy).to(device, non_blocking=True),
        target_TC=torch.cat(target).to(device, non_blocking=True),
        timesteps_B=timesteps.float().to(device, non_blocking=True),
        prompt_embeds_L=torch.cat([_fill(p, caption_fill) for p in prompt_embeds]).to(device, non_blocking=True),
        layout=TokenLayout.build(
            tuple(len(p) for p in prompt_embeds),
            tuple((x.shape[-2] // 2, x.shape[-1] // 2) for x in latents),
            axes_dims,
            device,
            padded,
        ),
        weights_B=None if weights is None else weights.to(device, non_blocking=True),
        loss_weights_TC=None
        if loss_weights is None
        else torch.cat([_fill(_normalise(w, x), image_fill) for w, x in zip(loss_weights, latents, strict=True)]).to(
            device, non_blocking=True
        ),
    )


def _normalise(weights_1HW: Tensor, latents_CHW: Tensor) -> Tensor:
    """Weights of one sample's patches with the mean 1, [T, C]; zeros stay zeros."""
    mean = weights_1HW.mean()
    weights_1HW = weights_1HW if mean == 0 else weights_1HW / mean
    return patchify(weights_1HW.expand(latents_CHW.shape))


def _fill(x_SC: Tensor, length: int | None) -> Tensor:
    """Zeros after the tokens, up to a length."""
    return x_SC if length is None else F.pad(x_SC, (0, 0, 0, length - len(x_SC)))


def predict_velocity(transformer: Lumina2Transformer, batch: NoisyBatch) -> Tensor:
    """What the network answers, [T, C] float32."""
    dtype = transformer.x_embedder.weight.dtype
    velocity_TC = transformer(
        batch.noisy_TC.to(dtype), batch.timesteps_B, batch.prompt_embeds_L.to(dtype), batch.layout
    )
    return velocity_TC.float()


def flow_matching_loss(
    transformer: Lumina2Transformer, batch: NoisyBatch, settings: NoiseSettings = DEFAULT_NOISE
) -> Tensor:
    """Mean loss of each sample.

    Args:
        transformer: On the batch's device.
        batch: What it is shown and should answer.
        settings: How errors count; squared by default.

    Returns:
        [B] float32, not reduced, so that loss by noise level costs nothing.
    """
    velocity_TC = predict_velocity(transformer, batch)
    image = batch.layout.image
    counted_TC = measure_error(
        settings.loss,
        settings.loss_delta,
        settings.loss_delta_schedule,
        velocity_TC - batch.target_TC,
        batch.timesteps_B,
        image.sample_index,
    )
    if batch.loss_weights_TC is not None:
        counted_TC = counted_TC * batch.loss_weights_TC
    if batch.reflection is not None:
        return reflexflow_loss(batch.reflection, counted_TC, velocity_TC, image)
    return image.mean_by_sample(counted_TC.mean(-1))


def loss_by_timestep_bin(losses: Sequence[float], timesteps: Sequence[float]) -> dict[int, float]:
    """Mean loss of each of 20 bins of t that has a sample; bin 0 is the noisiest."""
    bins: dict[int, list[float]] = {}
    for loss, t in zip(losses, timesteps, strict=True):
        bins.setdefault(min(int(t * NUM_TIMESTEP_BINS), NUM_TIMESTEP_BINS - 1), []).append(loss)
    return {index: sum(values) / len(values) for index, values in sorted(bins.items())}
