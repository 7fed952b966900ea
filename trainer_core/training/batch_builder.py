"""Builds the batch that starts at a position of the stream: what is read, drawn and laid out on the CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batches import Stream, choose_variant, sample_generator
from ..data.cache import TrainingSample, load_embeds, load_latents, load_mask
from ..lumina2.network.padding import ShapeLimiter
from ..lumina2.objective import NoisyBatch, make_noisy_batch
from ..lumina2.timesteps import NoiseSettings, draw_timesteps
from ..seeds import derive_seed
from .low_resolution import shrink_latents
from .nested_tensors import change_tensors
from .rollout import RolledSamples, draw_offset, find_rows, plan_path
from .rollout_settings import RolloutSettings

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
    is_regularisation: tuple[bool, ...]
    """Which samples have the base's prediction as their target."""
    is_extra: tuple[bool, ...]
    """Which samples are those of the second loss, see `low_resolution.py`."""
    rolled: RolledSamples | None = None
    """The samples that come from the model itself; None if there are none."""

    @property
    def num_rolled(self) -> int:
        """How many samples come from the model itself."""
        return 0 if self.rolled is None else len(self.rolled.start.timesteps_B)

    def pinned(self) -> TrainingBatch:
        """The same batch in memory that a GPU reads without waiting."""
        return self._changed(Tensor.pin_memory)

    def on(self, device: torch.device) -> TrainingBatch:
        """The same batch on a device; does not wait for it."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> TrainingBatch:
        rolled = None if self.rolled is None else change_tensors(self.rolled, change)
        return dataclasses.replace(self, noisy=change_tensors(self.noisy, change), rolled=rolled)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A sample with what was drawn for it."""

    of: TrainingSample
    position: int
    """Of the stream."""
    latents_CHW: Tensor
    weights_1HW: Tensor | None
    """What each place counts; None in data without masks."""
    noise_CHW: Tensor
    shown_noise_CHW: Tensor
    timestep_1: Tensor
    embeds_LD: Tensor
    rollout_offset: int = 0
    """Thousandths of sigma that the model itself goes; 0 is a straight mix."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the picture."""
        return _num_tokens(self.latents_CHW)


class BatchBuilder:
    """Builds batches as a function of the seed and the position alone, in any order and any thread.

    It knows the data and nothing of the model, so that a thread that builds does not keep a model alive.
    """

    def __init__(
        self,
        samples: Sequence[TrainingSample],
        stream: Stream,
        *,
        unconditional: Tensor,
        batch_size: int,
        caption_dropout: float,
        seed: int,
        noise: NoiseSettings,
        samples_per_step: int,
        axes_dims: tuple[int, ...],
        shapes: ShapeLimiter,
        rollout: RolloutSettings | None = None,
    ) -> None:
        """
        Args:
            samples: What the stream's indices mean.
            stream: Order of the samples.
            unconditional: [tokens, width], text states of the bare empty prompt.
            batch_size: Samples of a batch.
            caption_dropout: Share of samples that get the unconditional prompt.
            seed: Of every draw.
            noise: How times and noise are drawn.
            samples_per_step: Samples of an optimizer step.
            axes_dims: The network's rotary dimensions.
            shapes: How far samples are filled up.
            rollout: Which samples come from the model itself; None is none.
        """
        self._samples = samples
        self._stream = stream
        self._unconditional = unconditional
        self._batch_size = batch_size
        self._caption_dropout = caption_dropout
        self._seed = seed
        self._noise = noise
        self._samples_per_step = samples_per_step
        self._axes_dims = axes_dims
        self._shapes = shapes
        self._rollout = rollout
        # They wrap functions, not methods: that would tie this object to itself.
        self._load_latents = functools.lru_cache(maxsize=SAMPLES_IN_MEMORY)(load_latents)
        self._load_mask = functools.lru_cache(maxsize=SAMPLES_IN_MEMORY)(load_mask)
        # One kind of batch, masks or not, so that a shape is captured and compiled once.
        self._has_masks = any(sample.mask_paths for sample in samples)
        self._load_embeds = functools.lru_cache(maxsize=SAMPLES_IN_MEMORY)(load_embeds)

    def build(self, first_position: int) -> TrainingBatch:
        """The batch that starts at a position of the stream, on the CPU.

        Raises:
            CacheDamagedError: A cache entry is missing or damaged.
        """
        positions = range(first_position, first_position + self._batch_size)
        # By size, so that the same samples in another order are no other shape, see `lumina2/network/padding.py`.
        drawn = sorted(map(self._draw, positions), key=lambda sample: (sample.latents_CHW.shape, len(sample.embeds_LD)))
        weights = None
        if self._noise.low_resolution_weight:
            drawn += [self._draw_shrunk(whole) for whole in drawn]
            weights = torch.ones(2, self._batch_size) / self._batch_size
            weights[1] *= self._noise.low_resolution_weight
        timesteps_B = torch.cat([sample.timestep_1 for sample in drawn])
        noisy = self._mix(drawn, timesteps_B, None if weights is None else weights.flatten())
        return TrainingBatch(
            noisy=noisy,
            timesteps_B=timesteps_B,
            ids=[sample.of.id for sample in drawn],
            is_regularisation=tuple(sample.of.is_regularisation for sample in drawn),
            is_extra=tuple(number >= self._batch_size for number in range(len(drawn))),
            rolled=self._start_rollout(drawn, noisy),
        )

    def _mix(self, drawn: Sequence[_Drawn], timesteps_B: Tensor, weights_B: Tensor | None = None) -> NoisyBatch:
        """Samples at these times, on the straight line from noise to picture."""
        padded = None  # a picture and its shrunk copy are too different
        if not self._noise.low_resolution_weight:
            padded = self._shapes.padded_lengths(
                [len(sample.embeds_LD) for sample in drawn], [sample.num_tokens for sample in drawn]
            )
        return make_noisy_batch(
            [sample.latents_CHW for sample in drawn],
            [sample.noise_CHW for sample in drawn],
            timesteps_B,
            [sample.embeds_LD for sample in drawn],
            self._axes_dims,
            CPU,
            padded,
            shown_noise=[sample.shown_noise_CHW for sample in drawn],
            weights=weights_B,
            loss_weights=[s.weights_1HW for s in drawn if s.weights_1HW is not None] if self._has_masks else None,
        )

    def _start_rollout(self, drawn: Sequence[_Drawn], noisy: NoisyBatch) -> RolledSamples | None:
        """The samples that are rolled, where they start; one that is pure noise has nothing before it."""
        chosen = [i for i, sample in enumerate(drawn) if sample.rollout_offset and sample.timestep_1.item() > 0]
        if self._rollout is None or not chosen:
            return None
        rolled = [drawn[index] for index in chosen]
        path = plan_path(
            self._rollout,
            [sample.timestep_1.item() for sample in rolled],
            [sample.rollout_offset for sample in rolled],
        )
        start = self._mix(rolled, path.timesteps_NB[0])
        own_lengths, lengths = [sample.num_tokens for sample in rolled], [sample.num_tokens for sample in drawn]
        return RolledSamples(
            start=start,
            path=path,
            own_rows_R=find_rows(start.layout.image.segments.lengths, own_lengths, range(len(rolled))),
            rows_R=find_rows(noisy.layout.image.segments.lengths, lengths, chosen),
        )

    def _draw_offset(self, sample: TrainingSample, position: int) -> int:
        """How far a sample is rolled; never one whose target is the base's answer to its own kind of input."""
        if self._rollout is None or sample.is_regularisation:
            return 0
        return draw_offset(self._rollout, self._seed, position, self._step_at(position))

    def _step_at(self, position: int) -> int:
        """Optimizer step that a position of the stream belongs to, from 1."""
        return position // self._samples_per_step + 1

    def _draw(self, position: int) -> _Drawn:
        """The sample at a position with its draws, which are always made in this order."""
        sample = self._samples[self._stream.sample_at(position)]
        latents_CHW, embeds_LD = self._load(sample, position)
        generator = sample_generator(self._seed, position)
        timestep_1 = draw_timesteps(self._noise, (_num_tokens(latents_CHW),), generator, position)
        is_dropped = torch.rand((), generator=generator).item() < self._caption_dropout
        noise_CHW = torch.randn(latents_CHW.shape, generator=generator, dtype=torch.float32)
        return _Drawn(
            of=sample,
            position=position,
            latents_CHW=latents_CHW,
            weights_1HW=self._weigh(sample, position, latents_CHW),
            noise_CHW=noise_CHW,
            shown_noise_CHW=self._perturb(noise_CHW, position, generator),
            timestep_1=timestep_1,
            embeds_LD=self._unconditional if is_dropped else embeds_LD,
            rollout_offset=self._draw_offset(sample, position),
        )

    def _draw_shrunk(self, whole: _Drawn) -> _Drawn:
        """The same sample at a quarter of its size, with a noise and a time of its own."""
        position = whole.position
        generator = sample_generator(derive_seed(self._seed, "low resolution"), position)
        latents_CHW = shrink_latents(whole.latents_CHW)
        timestep_1 = draw_timesteps(self._noise, (_num_tokens(whole.latents_CHW),), generator, position)
        noise_CHW = torch.randn(latents_CHW.shape, generator=generator, dtype=torch.float32)
        return dataclasses.replace(
            whole,
            latents_CHW=latents_CHW,
            weights_1HW=None if whole.weights_1HW is None else shrink_latents(whole.weights_1HW),
            noise_CHW=noise_CHW,
            shown_noise_CHW=self._perturb(noise_CHW, position, generator),
            timestep_1=timestep_1,
            rollout_offset=0,
        )

    def _perturb(self, noise_CHW: Tensor, position: int, generator: torch.Generator) -> Tensor:
        """The noise that is shown: more than what is asked for (Ning et al., arXiv:2301.11706)."""
        size = self._noise.perturbation_at(self._step_at(position))
        if not size:
            return noise_CHW
        return noise_CHW + size * torch.randn(noise_CHW.shape, generator=generator, dtype=torch.float32)

    def _load(self, sample: TrainingSample, position: int) -> tuple[Tensor, Tensor]:
        """Latents of one of the crops and the text states of one of the captions."""
        crop = self._choose_crop(sample, position)
        caption = choose_variant(self._seed, position, "caption", len(sample.embeds_paths))
        return self._load_latents(sample.latents_paths[crop]), self._load_embeds(sample.embeds_paths[caption])

    def _choose_crop(self, sample: TrainingSample, position: int) -> int:
        return choose_variant(self._seed, position, "crop", len(sample.latents_paths))

    def _weigh(self, sample: TrainingSample, position: int, latents_CHW: Tensor) -> Tensor | None:
        """What each place of the crop counts, [1, H, W]; exactly 1 where the mask is white."""
        if not self._has_masks:
            return None
        if not sample.mask_paths:
            return torch.ones(1, *latents_CHW.shape[1:])
        mask_1HW = self._load_mask(sample.mask_paths[self._choose_crop(sample, position)])
        return 1 - (1 - sample.mask_outside_weight) * (1 - mask_1HW)


def _num_tokens(latents_CHW: Tensor) -> int:
    return latents_CHW.shape[-2] * latents_CHW.shape[-1] // 4
