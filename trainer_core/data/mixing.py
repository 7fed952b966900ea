"""Datasets mixed by weight: which folder each position of the stream comes from."""

from __future__ import annotations

import bisect
import functools
import itertools
import random
import threading
from collections.abc import Mapping, Sequence

from ..seeds import derive_seed
from .batches import SampleStream, Stream
from .cache import TrainingSample

BLOCK = 128
"""Positions that are dealt to the folders together; within each, folders get their share to within one sample."""


class MixedStream:
    """An endless stream of several folders' samples, each folder in shuffled passes of its own.

    Like `SampleStream` a function of the seed and the position: a block of positions is dealt to the folders by
    systematic sampling with a random start, so that shares are exact in the long run and nearly so in every block,
    and then shuffled. Where in its folder's passes a position is follows from counting the blocks before it.
    """

    def __init__(self, repeats: Sequence[int], folders: Sequence[int], weights: Mapping[int, float], seed: int) -> None:
        """
        Args:
            repeats: How often each sample counts in one pass over its folder.
            folders: The folder of each sample.
            weights: How often each folder is drawn, relative to the others.
            seed: Decides the order.
        """
        numbers = sorted(weights)
        total = sum(weights.values())
        self._edges = list(itertools.accumulate(weights[number] / total for number in numbers))[:-1]
        self._streams = [
            SampleStream(
                [count if folder == number else 0 for count, folder in zip(repeats, folders, strict=True)],
                derive_seed(seed, "folder", number),
            )
            for number in numbers
        ]
        self._num_items = sum(repeats)
        self._seed = seed
        self._dealt = functools.lru_cache(maxsize=4)(self._deal)
        self._counts = [tuple(0 for _ in numbers)]
        self._lock = threading.Lock()

    def _deal(self, block: int) -> list[int]:
        """The folder, as an index, of each position of a block."""
        rng = random.Random(derive_seed(self._seed, "mix", block))
        start = rng.random()
        dealt = [bisect.bisect_right(self._edges, (number + start) / BLOCK) for number in range(BLOCK)]
        rng.shuffle(dealt)
        return dealt

    def _count_before(self, block: int) -> tuple[int, ...]:
        """Samples of each folder in all blocks before one; remembered, for they are asked for in order."""
        with self._lock:
            while len(self._counts) <= block:
                dealt = self._deal(len(self._counts) - 1)
                self._counts.append(tuple(count + dealt.count(i) for i, count in enumerate(self._counts[-1])))
            return self._counts[block]

    def sample_at(self, position: int) -> int:
        """Index of the sample at a position of the stream, from 0."""
        block, offset = divmod(position, BLOCK)
        dealt = self._dealt(block)
        folder = dealt[offset]
        return self._streams[folder].sample_at(self._count_before(block)[folder] + dealt[:offset].count(folder))

    def epoch_at(self, position: int) -> int:
        """How often as many samples as all folders hold were drawn before a position."""
        return position // self._num_items


def make_stream(samples: Sequence[TrainingSample], seed: int) -> Stream:
    """The order of samples: of all folders together, or mixed by the weights that were asked for."""
    repeats = [sample.repeats for sample in samples]
    weights = {sample.folder: sample.folder_weight for sample in samples}
    if any(weight is None for weight in weights.values()):
        return SampleStream(repeats, seed)
    known = {folder: weight for folder, weight in weights.items() if weight is not None}
    return MixedStream(repeats, [sample.folder for sample in samples], known, seed)
