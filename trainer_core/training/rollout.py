"""Scheduled sampling: some samples of a batch come from the model itself, see `rollout_settings.py`.

The network's time is t = 1 - sigma. A sample of time t and offset k starts on the straight line at max(t - k / 1000, 0)
and follows the model's velocity to t, where it is trained on. All rolled samples of a batch go together; where they
take a different number of steps, those with fewer wait, so that a sample's path does not depend on its batch. Time and
tokens are float32. Not rolled: samples of regularisation, whose target is the base's answer to its own kind of input,
and those of the second loss at a quarter of the size.

Shape suffixes: N steps of the sampler, B samples, T image tokens of all samples, R tokens of the rolled samples without
padding, C channels of a patch.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lumina2.losses import Reflection
from ..lumina2.network.transformer import Lumina2Transformer
from ..lumina2.objective import NoisyBatch, predict_velocity
from ..lumina2.quant.precision import computation
from ..seeds import derive_seed
from .rollout_settings import ROLLOUT_SAMPLERS, ROLLOUT_TARGETS, STRATEGIES, UNITS_OF_SIGMA, RolloutSettings


@dataclass(frozen=True, kw_only=True)
class RolloutPath:
    """The times of the rolled samples of a batch."""

    timesteps_NB: Tensor
    """[N, B] float32, where each step begins."""
    sizes_NB: Tensor
    """[N, B] float32, how far it goes; 0 while a sample waits."""
    ends_B: Tensor
    """[B] float32, where the last step ends."""
    distances_B: Tensor
    """[B] float32, the whole way."""


@dataclass(frozen=True, kw_only=True)
class RolledSamples:
    """The samples of a batch that are rolled, before they are."""

    start: NoisyBatch
    """On the straight line, at the times they start from."""
    path: RolloutPath
    own_rows_R: Tensor
    """[R] int64, their tokens in `start`."""
    rows_R: Tensor
    """[R] int64, the same tokens in the whole batch."""


def draw_offset(settings: RolloutSettings, seed: int, position: int, step: int) -> int:
    """How far the sample at a position of the stream is rolled, in thousandths of sigma; 0 if it is not.

    Args:
        settings: Of the rollout.
        seed: Of every draw.
        position: Of the stream.
        step: Optimizer step that the position belongs to, from 1.
    """
    draws = random.Random(derive_seed(seed, "rollout", position))
    is_rolled, offset = draws.random() < settings.probability_at(step), draws.random()
    return STRATEGIES[settings.strategy](offset, settings.max_step_offset) if is_rolled else 0


def plan_path(settings: RolloutSettings, timesteps: Sequence[float], offsets: Sequence[int]) -> RolloutPath:
    """The times of a rollout.

    Args:
        settings: Whose sampler is used.
        timesteps: Time of each sample where it ends, above 0.
        offsets: Of each sample, at least 1.
    """
    counts = [settings.num_steps(offset) for offset in offsets]
    distances = [min(offset / UNITS_OF_SIGMA, t) for offset, t in zip(offsets, timesteps, strict=True)]
    starts, sizes = [], []
    for left in range(max(counts), 0, -1):
        steps = [distance / count for distance, count in zip(distances, counts, strict=True)]
        starts.append([t - min(left, n) * size for t, n, size in zip(timesteps, counts, steps, strict=True)])
        sizes.append([size if left <= n else 0.0 for n, size in zip(counts, steps, strict=True)])
    return RolloutPath(
        timesteps_NB=torch.tensor(starts, dtype=torch.float32).clamp_min(0),
        sizes_NB=torch.tensor(sizes, dtype=torch.float32),
        ends_B=torch.tensor(timesteps, dtype=torch.float32),
        distances_B=torch.tensor(distances, dtype=torch.float32),
    )


def find_rows(stored_lengths: Sequence[int], lengths: Sequence[int], chosen: Sequence[int]) -> Tensor:
    """Where the tokens of some samples lie in a packed batch.

    Args:
        stored_lengths: Tokens of each sample with padding.
        lengths: Tokens of each sample without.
        chosen: Indices of the samples wanted, in order.
    """
    return torch.cat([sum(stored_lengths[:index]) + torch.arange(lengths[index]) for index in chosen])


@torch.no_grad()
def with_rollout(
    transformer: Lumina2Transformer,
    batch: NoisyBatch,
    rolled: RolledSamples | None,
    settings: RolloutSettings,
    precision: str,
    device: torch.device,
) -> NoisyBatch:
    """The batch with its rolled samples where the model takes them.

    Tensors keep their shapes, so a CUDA graph of the step serves every batch.

    Args:
        transformer: As it is trained; dropout of its adapter is off meanwhile.
        batch: On the device.
        rolled: Likewise; None if none of its samples is.
        settings: Of the rollout.
        precision: Key of PRECISIONS.
        device: Where the transformer is.
    """
    if rolled is None:
        return _with_reflection(batch, None, batch.target_TC, batch.target_TC, settings)
    with _without_dropout(transformer), computation(precision, device):
        rolled_TC = roll(transformer, rolled, settings)
        clean_RC = _predict_clean(transformer, batch, rolled) if settings.use_reflexflow else None
    rows_R = rolled.rows_R
    token_index_R = rolled.start.layout.image.sample_index[rolled.own_rows_R]
    sigma_R1 = (1 - rolled.path.ends_B)[token_index_R][:, None]
    drift_RC = batch.noisy_TC[rows_R] - rolled_TC[rolled.own_rows_R]
    target_RC = batch.target_TC[rows_R]
    # Near the picture not more is corrected than can be on a way as long as that which led here.
    gain_R1 = 1 / torch.maximum(sigma_R1, rolled.path.distances_B[token_index_R][:, None])
    new_target_RC = ROLLOUT_TARGETS[settings.target](target_RC, drift_RC, gain_R1)
    changed = dataclasses.replace(
        batch,
        noisy_TC=batch.noisy_TC.index_copy(0, rows_R, rolled_TC[rolled.own_rows_R]),
        target_TC=batch.target_TC.index_copy(0, rows_R, new_target_RC),
    )
    if clean_RC is None:
        return changed
    clean_TC = batch.target_TC.index_copy(0, rows_R, clean_RC)
    direction_TC = batch.target_TC.index_copy(0, rows_R, sigma_R1 * target_RC + drift_RC)
    return _with_reflection(changed, rolled, clean_TC, direction_TC, settings)


def roll(transformer: Lumina2Transformer, rolled: RolledSamples, settings: RolloutSettings) -> Tensor:
    """The rolled samples at the end of their path, [T, C] float32 with padding as in `rolled.start`."""
    image = rolled.start.layout.image
    is_padding_T = image.segments.is_padding_S

    def velocity(x_TC: Tensor, timesteps_B: Tensor) -> Tensor:
        return predict_velocity(transformer, dataclasses.replace(rolled.start, noisy_TC=x_TC, timesteps_B=timesteps_B))

    def by_token(sizes_B: Tensor) -> Tensor:  # padding stays zero: nobody knows where it would go
        sizes_T = sizes_B[image.sample_index]
        return (sizes_T if is_padding_T is None else sizes_T.masked_fill(is_padding_T, 0))[:, None]

    step = ROLLOUT_SAMPLERS[settings.sampler].step
    x_TC = rolled.start.noisy_TC
    for timesteps_B, sizes_B in zip(rolled.path.timesteps_NB, rolled.path.sizes_NB, strict=True):
        x_TC = step(velocity, x_TC, timesteps_B, sizes_B, by_token(sizes_B))
    return x_TC


def _predict_clean(transformer: Lumina2Transformer, batch: NoisyBatch, rolled: RolledSamples) -> Tensor:
    """What the network answers to the straight mixes at the end of the path, [R, C]."""
    noisy_TC = rolled.start.noisy_TC.index_copy(0, rolled.own_rows_R, batch.noisy_TC[rolled.rows_R])
    clean = dataclasses.replace(rolled.start, noisy_TC=noisy_TC, timesteps_B=rolled.path.ends_B)
    return predict_velocity(transformer, clean)[rolled.own_rows_R]


def _with_reflection(
    batch: NoisyBatch, rolled: RolledSamples | None, clean_TC: Tensor, direction_TC: Tensor, settings: RolloutSettings
) -> NoisyBatch:
    """Every batch has it or none has: a CUDA graph reads the same tensors each time."""
    if not settings.use_reflexflow:
        return batch
    is_rolled_B = torch.zeros_like(batch.timesteps_B)
    if rolled is not None:
        is_rolled_B = is_rolled_B.index_fill(0, batch.layout.image.sample_index[rolled.rows_R], 1.0)
    reflection = Reflection(
        clean_TC=clean_TC,
        direction_TC=direction_TC,
        is_rolled_B=is_rolled_B,
        alpha=settings.reflexflow_alpha,
        beta1=settings.reflexflow_beta1,
        beta2=settings.reflexflow_beta2,
    )
    return dataclasses.replace(batch, reflection=reflection)


@contextmanager
def _without_dropout(transformer: Lumina2Transformer) -> Iterator[None]:
    was_training = transformer.training
    transformer.eval()
    try:
        yield
    finally:
        transformer.train(was_training)
