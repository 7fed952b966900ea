"""Which size a picture is trained at, and which part of it is kept.

A bucket is a picture size on a 64-pixel grid whose area is near resolution x resolution. For every long side on the
grid the short side is the multiple of 64 that brings the area nearest. A size is left out where

* the short side would be below 64 pixels,
* the long side is more than 4 times the short one (the longest shape the base was trained on), or
* the area is off by more than a quarter, which happens where the grid is coarse against the resolution.

Small resolutions leave few buckets: 128 has 64 x 256, 64 x 192, 128 x 128 and the same lying; 64 has only the square.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

GRID = 64
"""Pixels. The network needs multiples of 16; 64 keeps the number of different shapes small."""
MAX_ASPECT = 4.0
MAX_AREA_ERROR = 0.25


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """A picture size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@functools.cache
def list_buckets(resolution: int) -> tuple[Bucket, ...]:
    """All buckets of a resolution, from the tallest to the widest.

    Args:
        resolution: Side in pixels of the square with the wanted area, a multiple of 64.
    """
    area = resolution * resolution
    sizes = set()
    for long in range(resolution, int(MAX_ASPECT * resolution) + 1, GRID):
        short = max(0, math.ceil(area / long / GRID - 0.5)) * GRID  # a half goes down: less memory
        if short >= GRID and long <= MAX_ASPECT * short and abs(long * short / area - 1) <= MAX_AREA_ERROR:
            sizes |= {(long, short), (short, long)}
    ordered = sorted(sizes, key=lambda size: (size[0] / size[1], size))
    return tuple(Bucket(width=width, height=height) for width, height in ordered)


def bucket_for(width: int, height: int, resolution: int) -> Bucket:
    """The bucket whose shape is nearest, that is, which loses least of the picture to the crop.

    Scaled to cover, a picture keeps min(a / b, b / a) of its area for aspects a and b, so "nearest" is the distance of
    the aspects' logarithms. Of two equally near shapes the one with the area nearer to the resolution's is taken.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        resolution: Side in pixels of the square with the wanted area, a multiple of 64.
    """
    aspect = math.log(width / height)

    def distance(bucket: Bucket) -> tuple[float, float]:
        area_error = abs(bucket.width * bucket.height - resolution * resolution)
        return round(abs(math.log(bucket.width / bucket.height) - aspect), 9), area_error

    return min(list_buckets(resolution), key=distance)


def square_bucket(width: int, height: int, resolution: int) -> Bucket:
    """The square, whatever the picture's shape."""
    return Bucket(width=resolution, height=resolution)


ASPECTS: dict[str, Callable[[int, int, int], Bucket]] = {"buckets": bucket_for, "square": square_bucket}
"""Each takes a picture's width and height and the resolution."""


def crop_box(width: int, height: int, bucket: Bucket) -> tuple[float, float, float, float]:
    """The centred part of a picture that has the bucket's shape, as large as possible.

    Returns:
        left, top, right, bottom in pixels of the picture; not rounded, so that proportions are kept.
    """
    scale = max(bucket.width / width, bucket.height / height)
    crop_width, crop_height = min(width, bucket.width / scale), min(height, bucket.height / scale)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def upscale_factor(width: int, height: int, bucket: Bucket) -> float:
    """By how much a picture is scaled to cover the bucket; above 1 it is made larger than it is."""
    return max(bucket.width / width, bucket.height / height)


def kept_fraction(width: int, height: int, bucket: Bucket) -> float:
    """Share of the picture's area that the crop keeps, 0 to 1."""
    left, top, right, bottom = crop_box(width, height, bucket)
    return (right - left) * (bottom - top) / (width * height)
