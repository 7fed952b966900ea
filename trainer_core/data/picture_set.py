"""Pictures that no file holds yet, written as a folder of PNG and text files that is named by its content.

`<parent>/<name>/<set>/0001-<pixels>.png` and `.txt`: a set is written beside its place and renamed to it, and never
changed, so what is there is whole and a path to it never shows other pictures. Sets of the same name that went before
are removed when the new one is in place.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from ..errors import TrainerError
from ..files import copy_atomically, write_bytes_atomically
from .progress import Progress

Pixels = np.ndarray
"""[height, width, 1, 3 or 4] uint8: grey, RGB or RGBA."""
HASH_LENGTH = 16
"""Hexadecimal digits in the names of sets and pictures."""
NUMS_CHANNELS = (1, 3, 4)
"""Grey, RGB, RGBA."""


@dataclass(frozen=True, kw_only=True)
class CaptionedPixels:
    """One picture of a set."""

    pixels: Pixels
    caption: str
    """May be empty."""


def to_pixels(images: Sequence[Tensor]) -> list[Pixels]:
    """8-bit pictures, rounded: what was read from an 8-bit file comes out as it was.

    Args:
        images: Each [B, height, width, channels] in [0, 1]; what lies outside is clipped.

    Raises:
        TrainerError: There is no picture, or one is not of this shape or not of finite numbers.
    """
    for batch in images:
        if batch.ndim != 4 or batch.shape[-1] not in NUMS_CHANNELS:
            raise TrainerError(
                f"images has the shape {tuple(batch.shape)}: connect pictures of 1, 3 or 4 channels, as IMAGE is"
            )
    pictures = [_round(picture, number) for number, picture in enumerate(itertools.chain(*images), start=1)]
    if not pictures:
        raise TrainerError("images holds no picture: connect at least one")
    return pictures


def _round(picture: Tensor, number: int) -> Pixels:
    if not torch.isfinite(picture).all():
        raise TrainerError(f"picture {number} of images holds values that are not numbers: draw it again")
    return picture.detach().float().mul(255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()


def write_picture_set(folder: Path, pictures: Sequence[CaptionedPixels], progress: Progress) -> Path:
    """Write a set unless it is there, and remove those it replaces.

    Args:
        folder: Holds the sets of one name.
        pictures: In the order they are numbered in.
        progress: Told of each picture.

    Returns:
        The set's own folder.

    Raises:
        StopTraining: The user asked to stop; the set that was there before is still there.
    """
    names = [_name_picture(number, picture.pixels) for number, picture in enumerate(pictures, start=1)]
    content = [[name, picture.caption] for name, picture in zip(names, pictures, strict=True)]
    target = folder / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:HASH_LENGTH]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not _is_whole(target, names, pictures):
            _write(target, names, pictures, progress)
        for path in list(folder.iterdir()):
            if _is_set(path) and path != target:
                path.rename(_temporary_of(path))
        for leftover in folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
    return target


def read_picture_set(folder: Path) -> list[Pixels]:
    """The pictures that were written last.

    Args:
        folder: As for `write_picture_set`.

    Raises:
        TrainerError: There are none, an interruption left two sets, or a picture is damaged.
    """
    sets = [path for path in folder.iterdir() if _is_set(path)] if folder.is_dir() else []
    if len(sets) != 1:
        raise TrainerError(f"{len(sets)} sets of pictures are in {folder}")
    return [_read_png(path) for path in sorted(sets[0].glob("*.png"), key=lambda path: int(path.name.split("-")[0]))]


def _name_picture(number: int, pixels: Pixels) -> str:
    digest = hashlib.sha256(json.dumps(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return f"{number:04d}-{digest[:HASH_LENGTH]}.png"


def _is_set(path: Path) -> bool:
    is_named = re.fullmatch(rf"[0-9a-f]{{{HASH_LENGTH}}}", path.name) is not None
    return is_named and path.is_dir() and not path.is_symlink()


def _temporary_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _is_whole(target: Path, names: Sequence[str], pictures: Sequence[CaptionedPixels]) -> bool:
    """Whether nobody has changed a set since it was written."""
    found = {path.name for path in target.glob("[!.]*")}
    return found == {Path(name).with_suffix(ending).name for name in names for ending in (".png", ".txt")} and all(
        _is_same_picture(target / name, picture.pixels) and _read_text(target / name) == picture.caption
        for name, picture in zip(names, pictures, strict=True)
    )


def _is_same_picture(path: Path, pixels: Pixels) -> bool:
    try:
        return np.array_equal(_read_png(path), pixels)
    except TrainerError:
        return False


def _read_text(picture_path: Path) -> str | None:
    try:
        return picture_path.with_suffix(".txt").read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def _read_png(path: Path) -> Pixels:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TrainerError(f"{path.name} cannot be read ({error})") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _write(target: Path, names: Sequence[str], pictures: Sequence[CaptionedPixels], progress: Progress) -> None:
    temporary = _temporary_of(target)
    temporary.mkdir()
    try:
        for name, picture in zip(names, pictures, strict=True):
            progress.stop_if_asked()
            _write_picture(temporary / name, picture.pixels)
            write_bytes_atomically((temporary / name).with_suffix(".txt"), picture.caption.encode())
            progress.advance(1)
        if target.is_dir():  # somebody changed what is in it
            target.rename(_temporary_of(target))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_picture(path: Path, pixels: Pixels) -> None:
    """Write a picture, or copy the file of an earlier set: another version of Pillow would write other bytes."""
    for earlier in path.parent.parent.glob(f"{'[0-9a-f]' * HASH_LENGTH}/*{path.name[path.name.index('-') :]}"):
        if _is_same_picture(earlier, pixels):
            copy_atomically(earlier, path)
            return
    squeezed = pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels
    content = io.BytesIO()
    Image.fromarray(squeezed).save(content, "PNG", compress_level=4)
    write_bytes_atomically(path, content.getvalue())
