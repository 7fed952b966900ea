"""Builds the batch that starts at a position of the stream: what is read, drawn and laid out on the CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batches import SampleStream, sample_generator
from ..data.cache import TrainingSample, load_embeds, load_latents
from ..lumina2.objective import NoisyBatch, make_noisy_batch
from ..lumina2.timesteps import NoiseSettings, draw_timesteps
from .nested_tensors import change_tensors
from .shapes import ShapeLimiter

SAMPLES_IN_MEMORY = 128
"""Cached samples kept in memory; a 1024x1024 sample takes about 2 MB."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """A batch and where it came from."""

    noisy: NoisyBatch
    timesteps_B: Tensor
    """[B], the times of the samples; always on the CPU."""
    ids: list[str]

    def pinned(self) -> TrainingBatch:
        """The same batch in memory that a GPU reads without waiting."""
        return dataclasses.replace(self, noisy=change_tensors(self.noisy, Tensor.pin_memory))

    def on(self, device: torch.device) -> TrainingBatch:
        """The same batch on a device; does not wait for it."""
        return dataclasses.replace(
            self, noisy=change_tensors(self.noisy, lambda tensor: tensor.to(device, non_blocking=True))
        )


class BatchBuilder:
    """Builds batches as a function of the seed and the position alone, in any order and any thread.

    It knows the data and nothing of the model, so that a thread that builds does not keep a model alive.
    """

    def __init__(
        self,
        samples: Sequence[TrainingSample],
        stream: SampleStream,
        *,
        unconditional: Tensor,
        batch_size: int,
        caption_dropout: float,
        seed: int,
        noise: NoiseSettings,
        axes_dims: tuple[int, ...],
        shapes: ShapeLimiter,
    ) -> None:
        """
        Args:
            samples: What the stream's indices mean.
            stream: Order of the samples.
            unconditional: [tokens, width], text states of the bare empty prompt.
            batch_size: Samples of a batch.
            caption_dropout: Share of samples that get the unconditional prompt.
            seed: Of every draw.
            noise: How times are drawn.
            axes_dims: The network's rotary dimensions.
            shapes: How far samples are filled up.
        """
        self._samples = samples
        self._stream = stream
        self._unconditional = unconditional
        self._batch_size = batch_size
        self._caption_dropout = caption_dropout
        self._seed = seed
        self._noise = noise
        self._axes_dims = axes_dims
        self._shapes = shapes
        # Wraps a function, not a method: that would tie this object to itself.
        self._load = functools.lru_cache(maxsize=SAMPLES_IN_MEMORY)(functools.partial(_read_sample, samples))

    def build(self, first_position: int) -> TrainingBatch:
        """The batch that starts at a position of the stream, on the CPU.

        Raises:
            CacheDamagedError: A cache entry is missing or damaged.
        """
        drawn = []
        for position in range(first_position, first_position + self._batch_size):
            index = self._stream.sample_at(position)
            latents_CHW, embeds_LD = self._load(index)
            generator = sample_generator(self._seed, position)
            num_tokens = latents_CHW.shape[-2] * latents_CHW.shape[-1] // 4
            timestep = draw_timesteps(self._noise, (num_tokens,), generator)
            is_dropped = torch.rand((), generator=generator).item() < self._caption_dropout
            noise_CHW = torch.randn(latents_CHW.shape, generator=generator, dtype=torch.float32)
            embeds_LD = self._unconditional if is_dropped else embeds_LD
            drawn.append((latents_CHW, noise_CHW, timestep, embeds_LD, self._samples[index].id))
        # By size, so that the same samples in another order are no other shape, see `shapes.py`.
        drawn.sort(key=lambda sample: (sample[0].shape, len(sample[3])))
        latents, noise, timesteps, embeds, ids = (list(column) for column in zip(*drawn, strict=True))
        timesteps_B = torch.cat(timesteps)
        padded = self._shapes.padded_lengths(
            [len(embeds_LD) for embeds_LD in embeds], [x.shape[-2] * x.shape[-1] // 4 for x in latents]
        )
        noisy = make_noisy_batch(latents, noise, timesteps_B, embeds, self._axes_dims, CPU, padded)
        return TrainingBatch(noisy=noisy, timesteps_B=timesteps_B, ids=ids)


def _read_sample(samples: Sequence[TrainingSample], index: int) -> tuple[Tensor, Tensor]:
    """Latents and text states of one sample."""
    return load_latents(samples[index].latents_path), load_embeds(samples[index].embeds_path)
