"""Fill the mask cache: every crop of a mask, averaged to the grid of the latents."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..context import StepContext
from ..errors import TrainerError
from .entries import entry_name, is_valid_entry, read_entry, write_entry
from .images import UnreadablePicture, decode_picture
from .picture_index import NUM_READERS, read_content
from .progress import Progress
from .scan import Picture
from .sizing import Box, Bucket

RUN = "cache_masks"
MASK_VERSION = 1
"""Raise it when the same mask gives other numbers than before."""
PIXELS_PER_LATENT = 8


@dataclass(frozen=True, kw_only=True)
class _MaskCrop:
    picture: Picture
    box: Box
    name: str
    """Of the entry."""


def fill_mask_cache(
    pictures: Sequence[Picture], folder: Path, context: StepContext, *, needs_white: Sequence[bool]
) -> dict[str, tuple[str, ...]]:
    """Average the masks that have no entry yet.

    Args:
        pictures: With and without masks.
        folder: Where entries lie.
        context: Whom to tell.
        needs_white: Whether a picture's mask must leave something to learn.

    Returns:
        By picture id, for those with a mask: names of the entries, [1, height / 8, width / 8] float32 from 0 to 1, one
        for each crop.

    Raises:
        StopTraining: The user asked to stop.
        TrainerError: A mask changed meanwhile, or leaves nothing to learn.
    """
    masked = [(p, needs) for p, needs in zip(pictures, needs_white, strict=True) if p.mask is not None]
    crops = [(_name_crop(picture, box), needs) for picture, needs in masked for box in picture.boxes]
    if not crops:
        return {}
    progress = Progress(RUN, total=len(crops), num_done=0, context=context)
    pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="mask-reader")
    try:
        for (crop, needs), is_black in zip(crops, pool.map(lambda c: _fill(c[0], folder), crops), strict=True):
            progress.stop_if_asked()
            if needs and is_black:
                assert crop.picture.mask is not None
                raise TrainerError(
                    f"mask {crop.picture.mask.name} of {crop.picture.id} is black all over the part that is trained:"
                    " paint what is to be learned white, raise mask_outside_weight, or remove the picture"
                )
            progress.advance(1)
    finally:
        pool.shutdown(cancel_futures=True)
    return {picture.id: tuple(_name_crop(picture, box).name for box in picture.boxes) for picture, _ in masked}


def reduce_mask(mask: Image.Image, picture_size: tuple[int, int], bucket: Bucket, box: Box) -> Tensor:
    """Crop a mask as its picture is and average it to the grid of the latents.

    Args:
        mask: Any mode; its brightness counts.
        picture_size: Width and height of the picture, in pixels.
        bucket: Of the picture.
        box: The part that is kept, in pixels of the picture.

    Returns:
        [1, height / 8, width / 8] of the bucket, 1 where it is white.
    """
    scale_x, scale_y = mask.width / picture_size[0], mask.height / picture_size[1]
    left, top, right, bottom = box
    scaled = (
        left * scale_x,
        top * scale_y,
        min(mask.width, right * scale_x),
        min(mask.height, bottom * scale_y),
    )
    size = (bucket.width // PIXELS_PER_LATENT, bucket.height // PIXELS_PER_LATENT)
    small = mask.convert("L").resize(size, Image.Resampling.BOX, box=scaled)
    return torch.from_numpy(np.array(small)).float()[None] / 255  # [H, W] -> [1, H, W]


def _name_crop(picture: Picture, box: Box) -> _MaskCrop:
    assert picture.mask is not None, "no mask to crop"
    facts, bucket = picture.facts, picture.bucket
    sides = [f"{side:.3f}" for side in box]
    name = entry_name(
        RUN,
        MASK_VERSION,
        picture.mask.facts.content_hash,
        facts.width,
        facts.height,
        bucket.width,
        bucket.height,
        *sides,
    )
    return _MaskCrop(picture=picture, box=box, name=name)


def _fill(crop: _MaskCrop, folder: Path) -> bool:
    """Write an entry that is not there yet; whether it is black all over."""
    path, picture = folder / crop.name, crop.picture
    bucket = picture.bucket
    shape = (1, bucket.height // PIXELS_PER_LATENT, bucket.width // PIXELS_PER_LATENT)
    if is_valid_entry(path, shape, torch.float32):
        return not read_entry(path).any()
    assert picture.mask is not None, "no mask to crop"
    try:
        content, content_hash = read_content(picture.mask.path)
        if content_hash != picture.mask.facts.content_hash:
            raise UnreadablePicture("it is not what it was when the folder was listed")
        image = decode_picture(content).image
    except UnreadablePicture as error:
        raise TrainerError(
            f"mask {picture.mask.name} of {picture.id} changed while masks were cached ({error}): queue it again"
        ) from error
    reduced = reduce_mask(image, (picture.facts.width, picture.facts.height), bucket, crop.box)
    write_entry(path, reduced)
    return not reduced.any()
