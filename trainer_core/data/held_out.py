"""Which samples are kept out of training, to measure on them what was not learned by heart."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from ..errors import TrainerError

MIN_PICTURES = 2
"""Of one picture alone nobody knows how much another would differ."""


class Splittable(Protocol):
    """What decides which side a sample is on; see `TrainingSample`."""

    @property
    def content_hash(self) -> str: ...
    @property
    def is_held_out(self) -> bool: ...
    @property
    def is_regularisation(self) -> bool: ...


Sample = TypeVar("Sample", bound=Splittable)


def split_samples(samples: Sequence[Sample], share: float) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """What is trained on, and what is held out.

    All pictures of some folders are held out, and a share of the others, of which a picture's content decides: adding,
    removing or renaming other files moves it to neither side. All sizes and copies of a picture are on the same one. Of
    a share at least MIN_PICTURES are held out, those that would be first at a larger one. Regularisation pictures never
    are: their target is the base, not they.

    Args:
        samples: Of the whole dataset.
        share: Expected share of pictures held out, 0 to 1; 0 holds out none.

    Raises:
        TrainerError: Nothing would be left to train on.
    """
    held_out = {sample.content_hash for sample in samples if sample.is_held_out}
    others = {sample.content_hash for sample in samples if not sample.is_regularisation} - held_out
    if share:
        held_out |= _choose(others, share)
    elif len(held_out) == 1:
        raise TrainerError(
            "is_held_out is on for a single picture, and nobody knows how much another would differ: add a second one"
        )
    elif held_out and not others:
        raise TrainerError("is_held_out is on for all pictures, which leaves none to train on: add a folder without it")
    is_held_out = [sample.content_hash in held_out and not sample.is_regularisation for sample in samples]
    return (
        tuple(sample for sample, out in zip(samples, is_held_out, strict=True) if not out),
        tuple(sample for sample, out in zip(samples, is_held_out, strict=True) if out),
    )


def _choose(contents: Collection[str], share: float) -> set[str]:
    """A share of pictures, by their content."""
    ordered = sorted(contents, key=_position)
    num_held_out = max(MIN_PICTURES, sum(_position(content) < share for content in ordered))
    if num_held_out >= len(ordered):
        raise TrainerError(
            f"held_out_share is {share:g}, which would hold out {min(num_held_out, len(ordered))} of {len(ordered)}"
            " pictures and leave none to train on: lower it, set it to 0, or add pictures"
        )
    return set(ordered[:num_held_out])


def _position(content_hash: str) -> float:
    """Where a picture lies between 0 and 1, evenly spread."""
    return int(hashlib.sha256(f"held-out {content_hash}".encode()).hexdigest()[:12], 16) / 16**12
