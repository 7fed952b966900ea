"""Which samples make up each batch, and the random draws that go with each of them.

Everything is a function of the seed and of a position in one endless stream of samples: nothing has to be stored
to resume, and batches of 4 accumulated twice see the same samples and the same noise as batches of 8.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Protocol

import torch

from ..seeds import derive_seed


class Stream(Protocol):
    """An endless order of samples, a function of the position alone."""

    def sample_at(self, position: int, /) -> int:
        """Index of the sample at a position, from 0."""
        ...

    def epoch_at(self, position: int, /) -> int:
        """Passes over the data completed before a position."""
        ...


class SampleStream:
    """An endless stream: one shuffled pass over the data after another.

    A pass holds every sample as often as its repeats say. Batches run on across passes: no sample is dropped and
    no batch is short, however few pictures a bucket has.
    """

    def __init__(self, repeats: Sequence[int], seed: int) -> None:
        """
        Args:
            repeats: How often each sample counts in one pass.
            seed: Decides the order.
        """
        self.items = [index for index, count in enumerate(repeats) for _ in range(count)]
        self.seed = seed
        self._shuffled = functools.lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> list[int]:
        order = list(self.items)
        random.Random(derive_seed(self.seed, "order", epoch)).shuffle(order)
        return order

    def sample_at(self, position: int) -> int:
        """Index of the sample at a position of the stream, from 0."""
        epoch, offset = divmod(position, len(self.items))
        return self._shuffled(epoch)[offset]

    def epoch_at(self, position: int) -> int:
        """Passes over the data completed before a position."""
        return position // len(self.items)


def sample_generator(seed: int, position: int) -> torch.Generator:
    """The generator of every draw for the sample at a position: time, caption dropout and noise, in this order."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, "draws", position))


def choose_variant(seed: int, position: int, purpose: str, count: int) -> int:
    """Which of several variants, such as captions, the sample at a position takes; each is as likely as any other.

    A draw of its own: the draws of `sample_generator` are the same however many variants there are.
    """
    return derive_seed(seed, purpose, position) % count if count > 1 else 0
