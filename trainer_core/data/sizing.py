"""How the pictures of one folder are sized: from a picture's width and height to its bucket and crops.

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
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import TrainerError
from ..seeds import derive_seed

MEGAPIXEL = 2**20
"""Pixels: 1024 x 1024, as in ComfyUI's own nodes, so that 1, 0.25 and 4 are the squares of 1024, 512 and 2048."""

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


@dataclass(frozen=True, kw_only=True)
class ResolutionType:
    """What a resolution and the sizes compared with it measure."""

    unit: str
    """For messages."""
    measure: Callable[[float, float], float]
    """The size of a picture, from its width and height in pixels."""
    is_area: bool
    """The measure grows with the square of the scale."""
    list_buckets: Callable[[int], tuple[Bucket, ...]]
    """Buckets of a square's side in pixels."""

    def scale_to(self, size: float, width: int, height: int) -> float:
        """By how much to scale a picture so that it measures `size`."""
        ratio = size / self.measure(width, height)
        return math.sqrt(ratio) if self.is_area else ratio


RESOLUTION_TYPES: dict[str, ResolutionType] = {
    "pixel_area": ResolutionType(
        unit="pixels", measure=lambda w, h: math.sqrt(w * h), is_area=False, list_buckets=list_buckets
    ),
    "pixel": ResolutionType(unit="pixels", measure=min, is_area=False, list_buckets=list_edge_buckets),
    "area": ResolutionType(
        unit="megapixels", measure=lambda w, h: w * h / MEGAPIXEL, is_area=True, list_buckets=list_buckets
    ),
}


@dataclass(frozen=True, kw_only=True)
class SizePlan:
    """How the pictures of one folder are sized at one resolution."""

    resolution_type: str
    """Key of RESOLUTION_TYPES."""
    resolution: int
    """Side in pixels of the square among the buckets."""
    aspect: str
    """Key of ASPECTS."""
    aspect_ratios: tuple[float, ...]
    """Width / height to choose from."""
    crop_style: str
    """Key of CROP_STYLES."""
    num_crops: int
    minimum_image_size: float
    """Smaller pictures are left out; this and the next two are in the unit of resolution_type, 0 for none."""
    maximum_image_size: float
    """Larger pictures are scaled down before they are cropped."""
    target_downsample_size: float
    """To this."""

    def __post_init__(self) -> None:
        minimum, maximum, target = self.minimum_image_size, self.maximum_image_size, self.target_downsample_size
        kind = RESOLUTION_TYPES[self.resolution_type]
        own = kind.measure(self.resolution, self.resolution)
        if (maximum > 0) != (target > 0):
            raise TrainerError(
                f"maximum_image_size is {maximum:g} and target_downsample_size is {target:g}: set both, or leave both 0"
            )
        if maximum and minimum > maximum:
            raise TrainerError(
                f"minimum_image_size is {minimum:g}, more than maximum_image_size, which is {maximum:g}: lower it"
            )
        if target > maximum:
            raise TrainerError(
                f"target_downsample_size is {target:g}, more than maximum_image_size, which is {maximum:g}: lower it,"
                " for pictures would be scaled up"
            )
        if target and target < own:
            raise TrainerError(
                f"target_downsample_size is {target:g} {kind.unit}, less than the resolution, which is {own:g}:"
                " raise it, for pictures would be scaled down and up again"
            )
        if self.num_crops > 1 and self.crop_style != "random":
            raise TrainerError(
                f"num_crops is {self.num_crops} but crop_style is {self.crop_style!r}: set crop_style to random, or"
                " num_crops to 1, for all crops would be the same"
            )

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The sizes pictures are trained at."""
        return RESOLUTION_TYPES[self.resolution_type].list_buckets(self.resolution)


def _own_aspect(aspect: float, plan: SizePlan, rng: random.Random) -> Bucket:
    return nearest_bucket(aspect, plan.buckets, plan.resolution)


def _square(aspect: float, plan: SizePlan, rng: random.Random) -> Bucket:
    return Bucket(width=plan.resolution, height=plan.resolution)


def _closest_aspect(aspect: float, plan: SizePlan, rng: random.Random) -> Bucket:
    ratio = min(plan.aspect_ratios, key=lambda ratio: abs(math.log(ratio / aspect)))
    return nearest_bucket(ratio, plan.buckets, plan.resolution)


def _random_aspect(aspect: float, plan: SizePlan, rng: random.Random) -> Bucket:
    return nearest_bucket(rng.choice(plan.aspect_ratios), plan.buckets, plan.resolution)


ASPECTS: dict[str, Callable[[float, SizePlan, random.Random], Bucket]] = {
    "buckets": _own_aspect,
    "square": _square,
    "closest": _closest_aspect,
    "random": _random_aspect,
}
"""Each takes a picture's width / height, the plan and the picture's own random numbers."""


@dataclass(frozen=True, kw_only=True)
class SizedPicture:
    """What becomes of a picture."""

    bucket: Bucket
    boxes: tuple[Box, ...]
    """The parts that are kept, each a crop of its own; all different."""


def size_picture(plan: SizePlan, width: int, height: int, content_hash: str) -> SizedPicture | str:
    """The bucket and crops of a picture, or why it is left out.

    Args:
        plan: How its folder is sized.
        width: Of the upright picture, in pixels.
        height: Of the upright picture, in pixels.
        content_hash: Of the file; decides what is random, so that the same picture is always cropped alike.
    """
    kind = RESOLUTION_TYPES[plan.resolution_type]
    side = min(width, height)
    size = kind.measure(side, side) if plan.aspect == "square" else kind.measure(width, height)
    if size < plan.minimum_image_size:
        return (
            f"{width} x {height} pixels measure {size:.4g} {kind.unit}, less than minimum_image_size, which is"
            f" {plan.minimum_image_size:g}: lower that, or use a larger picture"
        )
    bucket = ASPECTS[plan.aspect](width / height, plan, random.Random(derive_seed(0, "aspect", content_hash)))
    scale = 0.0
    if plan.maximum_image_size and kind.measure(width, height) > plan.maximum_image_size:
        scale = kind.scale_to(plan.target_downsample_size, width, height)
    boxes = []
    for number in range(plan.num_crops):
        anchor = CROP_STYLES[plan.crop_style](random.Random(derive_seed(0, "crop", content_hash, number)))
        boxes.append(crop_box(width, height, bucket, anchor=anchor, scale=scale))
    return SizedPicture(bucket=bucket, boxes=tuple(dict.fromkeys(boxes)))


def megapixels_to_resolution(megapixels: float) -> int:
    """Side in pixels, on the 64-pixel grid, of the square of so many megapixels."""
    return max(GRID, round(math.sqrt(megapixels * MEGAPIXEL) / GRID) * GRID)


def parse_aspect_ratios(text: str) -> tuple[float, ...]:
    """Width / height of each entry of a list such as "1:1, 3:2, 0.75".

    Raises:
        TrainerError: An entry is no such ratio, or there is none.
    """
    ratios = []
    for entry in (part.strip() for part in text.split(",") if part.strip()):
        width, _, height = entry.partition(":")
        try:
            ratio = float(width) / float(height or 1)
        except (ValueError, ZeroDivisionError):
            ratio = math.nan
        if not 1 / MAX_ASPECT <= ratio <= MAX_ASPECT:
            raise TrainerError(
                f"aspect_ratios holds {entry!r}: write ratios of width to height from 1:4 to 4:1, such as 3:2 or 0.75"
            )
        ratios.append(ratio)
    if not ratios:
        raise TrainerError("aspect_ratios is empty: write some, such as 1:1, 3:2, 2:3, or set aspect to buckets")
    return tuple(ratios)
