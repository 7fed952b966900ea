"""The sizes that pictures are trained at.

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
from collections.abc import Sequence
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


@functools.cache
def list_edge_buckets(resolution: int) -> tuple[Bucket, ...]:
    """All sizes on the grid whose short side is the resolution, from the tallest to the widest.

    Args:
        resolution: Short side in pixels, a multiple of 64.
    """
    longs = range(resolution, int(MAX_ASPECT * resolution) + 1, GRID)
    tall = [Bucket(width=resolution, height=long) for long in longs]
    wide = [Bucket(width=long, height=resolution) for long in longs[1:]]
    return (*reversed(tall), *wide)


def nearest_bucket(aspect: float, buckets: Sequence[Bucket], resolution: int) -> Bucket:
    """The bucket whose shape is nearest, that is, which loses least of the picture to the crop.

    Scaled to cover, a picture keeps min(a / b, b / a) of its area for aspects a and b, so "nearest" is the distance of
    the aspects' logarithms. Of two equally near shapes the one with the area nearer to the resolution's is taken.

    Args:
        aspect: Width / height of the picture.
        buckets: To choose from.
        resolution: Side in pixels of the square among them.
    """

    def distance(bucket: Bucket) -> tuple[float, float]:
        area_error = abs(bucket.width * bucket.height - resolution * resolution)
        return round(abs(math.log(bucket.width / bucket.height) - math.log(aspect)), 9), area_error

    return min(buckets, key=distance)


def bucket_for(width: int, height: int, resolution: int) -> Bucket:
    """The bucket of a resolution that loses least of a picture of this many pixels."""
    return nearest_bucket(width / height, list_buckets(resolution), resolution)
