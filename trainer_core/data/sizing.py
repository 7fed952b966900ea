"""How the pictures of one folder are sized: from a picture's width and height to its bucket and crops."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TrainerError
from .batches import derive_seed
from .buckets import GRID, MAX_ASPECT, Bucket, list_buckets, list_edge_buckets, nearest_bucket
from .crops import CROP_STYLES, Box, crop_box

MEGAPIXEL = 2**20
"""Pixels: 1024 x 1024, as in ComfyUI's own nodes, so that 1, 0.25 and 4 are the squares of 1024, 512 and 2048."""


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
