"""Samples of many shapes, as the buckets of a data set give them, and of one shape with as many tokens."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import torch
from lumina2_trainer.trainer_core.data.sizing import Bucket, list_buckets
from lumina2_trainer.trainer_core.lumina2.network.layout import MAX_CAPTION_TOKENS

from .material import Sample, make_sample


def choose_buckets(resolution: int, num_buckets: int, max_aspect: float) -> list[Bucket]:
    """Buckets spread over the shapes of a resolution, from tall to wide.

    Args:
        resolution: Side in pixels of the square with the wanted area.
        num_buckets: How many; fewer where the resolution has fewer.
        max_aspect: The longest shape, long side over short one.
    """
    known = list_buckets(resolution)
    usual = [b for b in known if 1 / max_aspect <= b.width / b.height <= max_aspect]
    candidates = usual if len(usual) >= num_buckets else list(known)
    last = len(candidates) - 1
    chosen = (candidates[round(i * last / (num_buckets - 1))] for i in range(num_buckets))
    return list(dict.fromkeys(chosen))


def mixed_samples(
    resolution: int,
    *,
    num_buckets: int,
    samples_per_bucket: int,
    max_aspect: float,
    caption_tokens: tuple[int, int],
    text_width: int,
) -> list[Sample]:
    """Random samples in each bucket, with captions of random length.

    Args:
        resolution: Side in pixels of the square with the wanted area.
        num_buckets: See `choose_buckets`.
        samples_per_bucket: How many.
        max_aspect: See `choose_buckets`.
        caption_tokens: Shortest and longest caption.
        text_width: Of the text encoder.
    """
    lengths, generator = random.Random(0), torch.Generator().manual_seed(0)
    return [
        make_sample(bucket.width, bucket.height, lengths.randint(*caption_tokens), text_width, generator)
        for bucket in choose_buckets(resolution, num_buckets, max_aspect)
        for _ in range(samples_per_bucket)
    ]


def mean_num_tokens(samples: Sequence[Sample]) -> float:
    """Mean number of image and caption tokens of a sample."""
    return statistics.fmean(s.latents.shape[1] * s.latents.shape[2] / 4 + len(s.prompt_embeds) for s in samples)


def fixed_samples(samples: Sequence[Sample], resolution: int, *, text_width: int) -> list[Sample]:
    """As many samples, all square and with one caption length, so that the mean number of tokens is the same.

    Args:
        samples: Whose mean is met.
        resolution: Side in pixels.
        text_width: Of the text encoder.
    """
    num_image_tokens = (resolution // 16) ** 2
    caption_length = round(mean_num_tokens(samples)) - num_image_tokens
    assert 0 < caption_length <= MAX_CAPTION_TOKENS, f"no caption of {caption_length} tokens makes up the mean"
    generator = torch.Generator().manual_seed(0)
    return [make_sample(resolution, resolution, caption_length, text_width, generator) for _ in samples]
