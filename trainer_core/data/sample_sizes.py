"""How large samples are, which decides how much memory and time training takes: cached ones and ones to be cached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from .cache import TrainingSample
from .entries import TENSOR
from .index import folder_number, weigh_folders
from .scan import Picture, ScannedDataset

TOKEN_PIXELS = 16 * 16


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """One sample as the network sees it, and how often it comes."""

    caption_tokens: tuple[int, ...]
    """Of each of its captions."""
    width: int
    """Of the bucket, in pixels."""
    height: int
    repeats: int
    folder_weight: float | None = None
    """As `TrainingSample.folder_weight`."""

    @property
    def image_tokens(self) -> int:
        return self.width * self.height // TOKEN_PIXELS


@dataclass(frozen=True, kw_only=True)
class UncachedSample:
    """A picture of a dataset, before it is cached: its size, and what decides whether it is held out."""

    id: str
    """As `TrainingSample.id`."""
    size: SampleSize
    content_hash: str
    is_held_out: bool
    is_regularisation: bool

    @property
    def width(self) -> int:
        return self.size.width

    @property
    def height(self) -> int:
        return self.size.height


def size_of(sample: TrainingSample) -> SampleSize:
    """The size of a cached sample, from the headers of its entries."""
    return SampleSize(
        caption_tokens=tuple(map(_count_rows, sample.embeds_paths)),
        width=sample.width,
        height=sample.height,
        repeats=sample.repeats,
        folder_weight=sample.folder_weight,
    )


def measure_dataset(scanned: ScannedDataset, count_tokens: Callable[[str], int]) -> list[UncachedSample]:
    """The samples that the caches of a dataset will hold.

    Args:
        scanned: The dataset.
        count_tokens: Tokens that are trained on of a caption, with its system prompt.
    """
    pictures, folders = scanned.pictures, [folder.folder.settings for folder in scanned.folders]
    weights = weigh_folders(folders, Counter({f.number: sum(p.repeats for p in f.pictures) for f in scanned.folders}))

    def measure(picture: Picture) -> UncachedSample:
        number = folder_number(picture.id)
        return UncachedSample(
            id=picture.id,
            size=SampleSize(
                caption_tokens=tuple(map(count_tokens, picture.caption.texts)),
                width=picture.bucket.width,
                height=picture.bucket.height,
                repeats=picture.repeats,
                folder_weight=weights.get(number),
            ),
            content_hash=picture.facts.content_hash,
            is_held_out=folders[number - 1].is_held_out,
            is_regularisation=folders[number - 1].is_regularisation,
        )

    return [measure(picture) for picture in pictures]


def _count_rows(path: Path) -> int:
    """Tokens of a cached caption."""
    with safe_open(path, "pt") as file:
        return file.get_slice(TENSOR).get_shape()[0]
