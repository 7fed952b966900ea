"""What is inside picture files and what it looks like, remembered so that unchanged files are not read again.

A file counts as unchanged while its path, size and modification time stay the same. Only good files are remembered:
what is damaged today may have been repaired, or be readable by tomorrow's decoder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..context import StepContext
from ..files import write_bytes_atomically
from .images import MAX_PICTURE_BYTES, PREPARATION_VERSION, UnreadablePicture, decode_picture
from .listing import PictureFile
from .progress import Progress

logger = logging.getLogger(__name__)

INDEX_FILE = "pictures.json"
INDEX_VERSION = [PREPARATION_VERSION, 2]
"""How pictures are decoded, and what is remembered of them."""
NUM_READERS = min(8, os.cpu_count() or 1)
"""Threads that read and decode; each may hold one decoded picture."""


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What was learned by decoding a whole file."""

    content_hash: str
    """SHA-256 of the file, hexadecimal."""
    width: int
    """Pixels, upright."""
    height: int
    is_animated: bool
    sharpness: float
    """See `measure_sharpness`."""
    look: str
    """See `difference_hash`."""


def read_content(path: Path) -> tuple[bytes, str]:
    """A file's bytes and their SHA-256.

    Raises:
        UnreadablePicture: It is gone, too large, or may not be read.
    """
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise UnreadablePicture(f"larger than {MAX_PICTURE_BYTES // 2**30} GiB: scale it down")
        content = path.read_bytes()
    except OSError as error:
        raise UnreadablePicture(f"cannot be read ({error.strerror}): check the file and its permissions") from error
    return content, hashlib.sha256(content).hexdigest()


def examine_pictures(
    files: Sequence[PictureFile], context: StepContext
) -> dict[Path, PictureFacts | UnreadablePicture]:
    """Decode the files that are new or changed, and recall the others.

    Raises:
        StopTraining: The user asked to stop; what was learned so far is remembered.
    """
    index_path = context.cache_dir / INDEX_FILE
    index = _load_index(index_path)
    found: dict[Path, PictureFacts | UnreadablePicture] = {}
    unknown: dict[Path, PictureFile] = {}
    for file in files:
        remembered = index.get(str(file.path))
        if remembered and (remembered.size, remembered.mtime_ns) == (file.size, file.mtime_ns):
            found[file.path] = remembered.facts
        else:
            unknown[file.path] = file
    if not unknown:
        return found
    progress = Progress("dataset_folder", total=len(found) + len(unknown), num_done=len(found), context=context)
    pool = ThreadPoolExecutor(NUM_READERS)
    try:
        for file, facts in zip(unknown.values(), pool.map(_examine, unknown), strict=True):
            progress.stop_if_asked()
            found[file.path] = facts
            if isinstance(facts, PictureFacts):
                index[str(file.path)] = _Remembered(size=file.size, mtime_ns=file.mtime_ns, facts=facts)
            progress.advance(1)
    finally:
        pool.shutdown(cancel_futures=True)
        _save_index(index_path, index)
    return found


def _examine(path: Path) -> PictureFacts | UnreadablePicture:
    try:
        content, content_hash = read_content(path)
        picture = decode_picture(content)
    except UnreadablePicture as error:
        return UnreadablePicture(str(error))  # without the traceback, which holds on to the file's bytes
    width, height = picture.image.size
    return PictureFacts(
        content_hash=content_hash,
        width=width,
        height=height,
        is_animated=picture.is_animated,
        sharpness=measure_sharpness(picture.image),
        look=difference_hash(picture.image),
    )


@dataclass(frozen=True, kw_only=True)
class _Remembered:
    size: int
    mtime_ns: int
    facts: PictureFacts


def _load_index(path: Path) -> dict[str, _Remembered]:
    """What was remembered; nothing, and a warning, if the file is damaged: it only saves time."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != INDEX_VERSION:
            return {}
        return {
            name: _Remembered(size=size, mtime_ns=mtime_ns, facts=PictureFacts(**facts))
            for name, (size, mtime_ns, facts) in content["pictures"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s): all pictures are read again", path, error)
        return {}


def _save_index(path: Path, index: dict[str, _Remembered]) -> None:
    """Write what is known of all files that still exist, whichever dataset they belong to."""
    pictures = {
        name: [entry.size, entry.mtime_ns, dataclasses.asdict(entry.facts)]
        for name, entry in index.items()
        if os.path.exists(name)
    }
    content = {"version": INDEX_VERSION, "pictures": pictures}
    write_bytes_atomically(path, json.dumps(content).encode())


LOOKED_AT = 512
"""Longer side in pixels at which sharpness is measured, so that large pictures are not called sharper."""
BLURRY = 12.0
"""Pictures of less sharpness are called blurry. Photographs in focus have 50 to 3000, out of focus 1 to 10;
of a single colour 0."""
MAX_DIFFERENT_BITS = 3
"""Of 64, between pictures that look the same: scaled, compressed again, or slightly changed in brightness."""
NUM_BANDS = MAX_DIFFERENT_BITS + 1
"""Hashes that differ in no more bits agree in at least one of these parts."""
HASH_BITS = 64


def measure_sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture, of values from 0 to 255 (Pech-Pacheco et al., ICPR 2000)."""
    grey = image.convert("L")
    grey.thumbnail((LOOKED_AT, LOOKED_AT), Image.Resampling.BILINEAR)
    laplacian = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)
    edges = np.asarray(grey.filter(laplacian), dtype=np.float64)[1:-1, 1:-1]
    return float(edges.var()) if edges.size else 0.0


def difference_hash(image: Image.Image) -> str:
    """64 bits as 16 hexadecimal digits: whether each of 8 x 8 parts is brighter than the one at its left (dHash)."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).flatten()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def find_look_alikes(hashes: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of names whose hashes hardly differ, in the order of the names.

    Args:
        hashes: From `difference_hash`, by name. Pictures without any structure must not be among them.
    """
    numbers = {name: int(value, 16) for name, value in hashes.items()}
    group_of = {name: name for name in numbers}

    def first_of(name: str) -> str:
        while group_of[name] != name:
            name = group_of[name]
        return name

    for same_part in _share_a_part(numbers):
        for i, name in enumerate(same_part):
            for other in same_part[i + 1 :]:
                if (numbers[name] ^ numbers[other]).bit_count() <= MAX_DIFFERENT_BITS:
                    group_of[first_of(other)] = first_of(name)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in numbers:
        groups[first_of(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _share_a_part(numbers: Mapping[str, int]) -> list[Sequence[str]]:
    """Names whose hashes agree in a quarter of their bits: comparing only these takes no time for 10,000 pictures."""
    width = HASH_BITS // NUM_BANDS
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, number in numbers.items():
        for band in range(NUM_BANDS):
            found[band, (number >> (band * width)) & ((1 << width) - 1)].append(name)
    return [names for names in found.values() if len(names) > 1]
