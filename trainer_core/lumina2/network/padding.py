"""Giving batches of many sizes few shapes.

cuDNN's attention prepares a plan for every new length (0.11 s on an H100), and a CUDA graph serves one shape only.
While a run has few shapes, its batches stay as they are, but for samples of a batch that differ: those are filled up to
the longest, because attention over unequal lengths repeats grouped heads (batch 4 at 1024 x 1024: 0.07 s of 0.71).
Beyond that all are filled up to the next multiples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..ops.attention import has_padded_attention
from .layout import PaddedLengths
from .transformer import Lumina2Config

MAX_EXACT_SHAPES = 4
"""Shapes of a run that are left as they are."""
MANY_IMAGE_TOKENS = 2048
"""1024 x 1024 has 4096."""
MULTIPLES = (64, 128)
"""Tokens that captions and images are filled up to multiples of: of fewer and of at least MANY_IMAGE_TOKENS."""
ALIGNMENT = 8
"""The same where a run has few shapes."""
MAX_WASTE = 0.15
"""Largest share of padding worth its time."""
CHEAP_WASTE = 1024
"""Tokens of padding that take less time than a new plan and a step without a graph, whatever their share; a run with
few shapes saves neither."""


class ShapeLimiter:
    """Decides, batch by batch, how far samples are filled up."""

    def __init__(self, config: Lumina2Config, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            config: Of the network.
            device: Where it runs.
            dtype: What it computes in.
        """
        self._exact: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        self._has_padding = dtype is torch.bfloat16 and has_padded_attention(
            device, config.num_attention_heads, config.num_kv_heads, config.head_size
        )

    def padded_lengths(self, caption_lengths: Sequence[int], image_lengths: Sequence[int]) -> PaddedLengths | None:
        """What every sample of a batch is filled up to; None leaves them as they are.

        Args:
            caption_lengths: Tokens of each caption.
            image_lengths: Tokens of each picture.
        """
        if not self._has_padding:
            return None
        shape = (tuple(caption_lengths), tuple(image_lengths))
        if shape in self._exact or len(self._exact) < MAX_EXACT_SHAPES:
            self._exact.add(shape)
            return choose_padding(caption_lengths, image_lengths, has_few_shapes=True)
        return choose_padding(caption_lengths, image_lengths)


def choose_padding(
    caption_lengths: Sequence[int], image_lengths: Sequence[int], *, has_few_shapes: bool = False
) -> PaddedLengths | None:
    """What the samples of a batch are filled up to.

    Args:
        caption_lengths: Tokens of each caption.
        image_lengths: Tokens of each picture.
        has_few_shapes: Of the run: samples of equal lengths stay as they are.

    Returns:
        None for what stays as it is, as do samples so different that much of the work would be padding.
    """
    if has_few_shapes and len(set(caption_lengths)) == len(set(image_lengths)) == 1:
        return None
    padded = next_multiples(max(caption_lengths), max(image_lengths), ALIGNMENT if has_few_shapes else None)
    num_stored = len(image_lengths) * (padded.caption + padded.image)
    waste = num_stored - sum(caption_lengths) - sum(image_lengths)
    most = MAX_WASTE * num_stored if has_few_shapes else max(CHEAP_WASTE, MAX_WASTE * num_stored)
    return padded if waste <= most else None


def next_multiples(caption: int, image: int, multiple: int | None = None) -> PaddedLengths:
    """Lengths rounded up, to MULTIPLES if no other is given."""
    multiple = multiple or MULTIPLES[image >= MANY_IMAGE_TOKENS]
    return PaddedLengths(caption=_round_up(caption, multiple), image=_round_up(image, multiple))


def most_stored(num_tokens: int) -> int:
    """Tokens that batches of no more than `num_tokens` can be filled up to."""
    return max(num_tokens + CHEAP_WASTE, int(num_tokens / (1 - MAX_WASTE)))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
