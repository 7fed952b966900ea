"""What is inside picture files, remembered so that unchanged files are not read again.

A file counts as unchanged while its path, size and modification time stay the same. Only good files are remembered:
what is damaged today may have been repaired, or be readable by tomorrow's decoder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..context import StepContext
from ..files import write_bytes_atomically
from .images import MAX_PICTURE_BYTES, PREPARATION_VERSION, UnreadablePicture, decode_picture
from .listing import PictureFile
from .picture_quality import difference_hash, measure_sharpness
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
