"""Picture files to RGB pictures to pixels: orientation, alpha, bit depth, scaling and crop."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import TrainerError
from .sizing import Box, Bucket, crop_box

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp"})
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP")
"""What Pillow may try. Everything else stays closed to files from outside, whatever their name says."""
MAX_PICTURE_PIXELS = 2**27
"""134 megapixels, 0.5 GiB decoded; a small file can claim any size."""
MAX_PICTURE_BYTES = 2**30
PREPARATION_VERSION = 1
"""Raise it when the same file gives other pixels than before, so that cached latents are redone."""

# Broken files make Pillow's decoders raise nearly anything; these were seen or are raised by their parsers (Pillow 13).
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class UnreadablePicture(TrainerError):
    """A file that cannot be trained on; the message is the reason without the file's name."""


@dataclass(frozen=True, kw_only=True)
class DecodedPicture:
    """A picture as it is trained on, before scaling."""

    image: Image.Image
    """RGB, upright, on white."""
    is_animated: bool
    """The file has more frames; only the first is used."""


def decode_picture(content: bytes) -> DecodedPicture:
    """Decode a whole file.

    Raises:
        UnreadablePicture: The file is damaged, too large or of another format.
    """
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS:
                raise UnreadablePicture(
                    f"{image.width} x {image.height} pixels are more than {MAX_PICTURE_PIXELS // 10**6} megapixels:"
                    " scale it down"
                )
            # MPO is what phones call a JPEG with a depth map or a second view behind it.
            is_animated = image.format != "MPO" and getattr(image, "is_animated", False)
            image.load()
            return DecodedPicture(image=_to_rgb(ImageOps.exif_transpose(image)), is_animated=is_animated)
    except Image.UnidentifiedImageError:
        raise UnreadablePicture("not a jpg, png, webp, avif or bmp picture: convert it, or remove it") from None
    except MemoryError:
        raise UnreadablePicture("not enough memory to decode it: scale it down") from None
    except DECODE_ERRORS as error:
        raise UnreadablePicture(f"damaged ({error}): replace it, or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB with anything transparent shown on white; 16-bit grey keeps its upper byte's range."""
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 when it converts.
        grey = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        white.alpha_composite(rgba)
        image = white
    return image.convert("RGB")


def fit_to_bucket(
    image: Image.Image, bucket: Bucket, *, box: Box | None = None, size: tuple[int, int] | None = None
) -> Image.Image:
    """Crop to the bucket's shape and scale, in one resampling.

    Args:
        image: RGB picture.
        bucket: Decides the crop.
        box: The part that is kept; by default the largest in the centre.
        size: Width and height of the result in pixels; the bucket's own by default.
    """
    box = box or crop_box(image.width, image.height, bucket)
    return image.resize(size or (bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)


def to_picture_tensor(image: Image.Image) -> Tensor:
    """[3, height, width] uint8 of an RGB picture, laid out as the picture is: channels last."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]
