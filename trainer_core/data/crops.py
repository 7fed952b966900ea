"""Which part of a picture is kept, and where it lies."""

from __future__ import annotations

import random
from collections.abc import Callable

from .buckets import Bucket

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the picture; not rounded, so that proportions are kept."""
Anchor = tuple[float, float]
"""Share of the room to the left of a crop and above it: 0 is the left or upper edge, 1 the right or lower one."""

CENTER: Anchor = (0.5, 0.5)

CROP_STYLES: dict[str, Callable[[random.Random], Anchor]] = {
    "center": lambda rng: CENTER,
    "corner": lambda rng: (0.0, 0.0),
    "random": lambda rng: (rng.random(), rng.random()),
}
"""Where the kept part lies."""


def cover_scale(width: int, height: int, bucket: Bucket) -> float:
    """By how much a picture is scaled so that it just covers a bucket."""
    return max(bucket.width / width, bucket.height / height)


def crop_box(width: int, height: int, bucket: Bucket, *, anchor: Anchor = CENTER, scale: float = 0.0) -> Box:
    """The part of a picture that becomes a bucket.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        bucket: Decides the shape.
        anchor: Where the part lies.
        scale: By how much the picture is scaled before it is cut; the least that covers the bucket if this is less,
            so that as much as possible is kept.
    """
    scale = max(scale, cover_scale(width, height, bucket))
    crop_width, crop_height = min(width, bucket.width / scale), min(height, bucket.height / scale)
    left, top = (width - crop_width) * anchor[0], (height - crop_height) * anchor[1]
    return left, top, min(width, left + crop_width), min(height, top + crop_height)


def upscale_factor(bucket: Bucket, box: Box) -> float:
    """By how much the kept part is scaled to fill the bucket; above 1 it is made larger than it is."""
    left, top, right, bottom = box
    return max(bucket.width / (right - left), bucket.height / (bottom - top))


def kept_fraction(width: int, height: int, box: Box) -> float:
    """Share of the picture's area that is kept, 0 to 1."""
    left, top, right, bottom = box
    return (right - left) * (bottom - top) / (width * height)
