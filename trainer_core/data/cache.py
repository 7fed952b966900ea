"""The latent and text caches: what travels on the LUMINA2_LATENTS and LUMINA2_EMBEDS sockets, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..errors import CacheDamagedError, TrainerError
from .entries import UnreadableEntry, read_entry
from .index import EMBEDS_FOLDER, FORMAT_VERSION, LATENTS_FOLDER, EmbedIndex, LatentIndex, folder_number

REMEDIES = {
    LATENTS_FOLDER: "queue Cache Latents again",
    EMBEDS_FOLDER: "queue Cache Text Embeds again",
}
"""What to do when files of a cache are missing or damaged, by the cache's folder."""

Index = TypeVar("Index", LatentIndex, EmbedIndex)


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """A finished latent cache, by its index file."""

    index_path: str
    """JSON index: see `LatentIndex`."""
    fingerprint: str
    """Changes when any cached latent or its order changes."""


@dataclass(frozen=True, kw_only=True)
class EmbedCache:
    """A finished text cache, by its index file."""

    index_path: str
    """JSON index: see `EmbedIndex`."""
    fingerprint: str
    """Changes when a caption's embedding, the unconditional one or their order changes;
    validation prompts don't count."""


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """One picture with its caption, ready to train on."""

    id: str
    file_name: str
    latents_path: Path
    """Of its first crop."""
    embeds_path: Path
    """Of its first caption."""
    caption: str
    """The first."""
    width: int
    """Of the bucket, in pixels."""
    height: int
    repeats: int
    more_embeds_paths: tuple[Path, ...] = ()
    """Of its other captions; each time the picture is trained on, one of all is drawn."""

    more_latents_paths: tuple[Path, ...] = ()
    """Of its other crops, all of the same size; one of all is drawn, too."""

    folder: int = 1
    """Number of its folder, from 1."""
    folder_weight: float | None = None
    """How often the folder is drawn, relative to the others'; None if all samples are drawn alike."""
    is_regularisation: bool = False
    """Its target is what the base predicts, not the picture."""
    is_held_out: bool = False
    """It is measured on, and not trained on."""
    content_hash: str = ""
    """SHA-256 of the picture file."""
    mask_paths: tuple[Path, ...] = ()
    """Of its mask for each crop; none if all of it counts."""
    mask_outside_weight: float = 0.0
    """What the loss counts where the mask is black."""

    @property
    def latents_paths(self) -> tuple[Path, ...]:
        """Of all crops."""
        return (self.latents_path, *self.more_latents_paths)

    @property
    def embeds_paths(self) -> tuple[Path, ...]:
        """Of all captions."""
        return (self.embeds_path, *self.more_embeds_paths)


def _damaged(folder: str, problem: str) -> CacheDamagedError:
    return CacheDamagedError(f"{problem}: {REMEDIES[folder]}", cache=folder)


def _read_index(index_path: str, folder: str, parse: Callable[[dict[str, Any], Path], Index]) -> Index:
    path = Path(index_path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["kind"], content["version"]) != (folder, FORMAT_VERSION):
            raise _damaged(folder, f"{path} is not a {folder} index of this version")
        return parse(content, path.parent.parent)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"the cache index {path} is missing or damaged ({error})") from error


def _check_entries(paths: list[Path], folder: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise _damaged(folder, f"{len(missing)} of {len(paths)} cache entries are gone, such as {missing[0]}")


def _read_entry(path: Path, folder: str) -> Tensor:
    try:
        return read_entry(path)
    except UnreadableEntry as error:
        raise _damaged(folder, f"cache entry {path} is missing or damaged ({error})") from error


def read_latent_index(cache: LatentCache) -> LatentIndex:
    """Read the index of a latent cache.

    Raises:
        CacheDamagedError: The index or entries were deleted or damaged.
    """
    index = _read_index(cache.index_path, LATENTS_FOLDER, LatentIndex.from_json)
    paths = [path for sample in index.samples for path in (*index.paths_of(sample), *index.mask_paths_of(sample))]
    _check_entries(paths, LATENTS_FOLDER)
    return index


def read_embed_index(cache: EmbedCache) -> EmbedIndex:
    """Read the index of a text cache.

    Raises:
        CacheDamagedError: The index or entries were deleted or damaged.
    """
    index = _read_index(cache.index_path, EMBEDS_FOLDER, EmbedIndex.from_json)
    captions = [path for sample in index.samples for path in index.paths_of(sample)]
    _check_entries([*captions, *index.prompts.values(), *index.negative_prompts.values()], EMBEDS_FOLDER)
    return index


def load_latents(path: Path) -> Tensor:
    """[16, height / 8, width / 8] float32 latents of one picture, scaled for the network.

    Raises:
        CacheDamagedError: The entry is missing or damaged.
    """
    return _read_entry(path, LATENTS_FOLDER)


def load_mask(path: Path) -> Tensor:
    """[1, height / 8, width / 8] float32 mask of one picture, 1 where the loss counts.

    Raises:
        CacheDamagedError: The entry is missing or damaged.
    """
    return _read_entry(path, LATENTS_FOLDER)


def load_embeds(path: Path) -> Tensor:
    """[tokens, width] float32 text states of one prompt, without padding.

    Raises:
        CacheDamagedError: The entry is missing or damaged.
    """
    return _read_entry(path, EMBEDS_FOLDER)


def join_samples(latents: LatentIndex, embeds: EmbedIndex) -> tuple[TrainingSample, ...]:
    """Put every picture's latents and caption together, in the order of the latents.

    Raises:
        TrainerError: The two caches were made of different datasets, or of different states of one.
    """
    remedy = "queue Cache Latents and Cache Text Embeds again, both with the same dataset"
    captions = {sample.id: sample for sample in embeds.samples}
    pictures = {sample.id for sample in latents.samples}
    alone = [s.id for s in latents.samples if s.id not in captions] + [i for i in captions if i not in pictures]
    if alone:
        raise TrainerError(
            f"latents and text embeds come from different datasets: {alone[0]} and {len(alone) - 1} more pictures are"
            f" in one cache only: {remedy}"
        )
    changed = [s.id for s in latents.samples if s.content_hash != captions[s.id].content_hash]
    if changed:
        raise TrainerError(
            f"latents and text embeds come from different pictures: {changed[0]} and {len(changed) - 1} more differ:"
            f" {remedy}"
        )
    weights = latents.folder_weights
    numbers = {sample.id: folder_number(sample.id) for sample in latents.samples}
    return tuple(
        TrainingSample(
            id=sample.id,
            file_name=sample.file_name,
            latents_path=latents.paths_of(sample)[0],
            more_latents_paths=latents.paths_of(sample)[1:],
            embeds_path=embeds.paths_of(captions[sample.id])[0],
            more_embeds_paths=embeds.paths_of(captions[sample.id])[1:],
            caption=captions[sample.id].captions[0],
            width=sample.width,
            height=sample.height,
            repeats=sample.repeats,
            folder=numbers[sample.id],
            folder_weight=weights.get(numbers[sample.id]),
            is_regularisation=latents.folders[numbers[sample.id] - 1].is_regularisation,
            is_held_out=latents.folders[numbers[sample.id] - 1].is_held_out,
            content_hash=sample.content_hash,
            mask_paths=latents.mask_paths_of(sample),
            mask_outside_weight=latents.folders[numbers[sample.id] - 1].mask_outside_weight,
        )
        for sample in latents.samples
    )
