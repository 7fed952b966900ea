"""Finds the mask of each picture: a picture of the same name in another folder, white where the loss counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..context import StepContext
from ..errors import TrainerError
from .caption_tables import picture_key, without_ending
from .folder import DatasetFolder
from .images import UnreadablePicture
from .listing import PictureFile, list_pictures
from .picture_index import PictureFacts

Masks = Mapping[str, PictureFile]
"""Mask files by `picture_key` of their path inside the mask folder, without ending."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The mask of one picture, of the picture's shape."""

    name: str
    """Path inside the mask folder."""
    path: Path
    facts: PictureFacts


def find_masks(folder: DatasetFolder, context: StepContext) -> Masks:
    """List a folder's masks, without opening any of them.

    Raises:
        TrainerError: Two masks have one name.
    """
    masks: dict[str, PictureFile] = {}
    for file in list_pictures(folder.mask_path, folder, context) if folder.mask_path else ():
        other = masks.setdefault(_key(file.name), file)
        if other is not file:
            raise TrainerError(
                f"mask_folder {folder.settings.mask_folder!r} holds {other.name} and {file.name}, which belong to one"
                " picture: remove one of them"
            )
    return masks


def mask_of(
    folder: DatasetFolder,
    masks: Masks,
    file: PictureFile,
    facts: PictureFacts,
    known: Mapping[Path, PictureFacts | UnreadablePicture],
) -> Mask | None:
    """The mask of a picture; None if there is none and none is needed.

    Args:
        folder: Of the picture.
        masks: Of the folder.
        file: The picture.
        facts: The picture's.
        known: What is inside the mask files.

    Raises:
        TrainerError: It is missing, damaged, or of another shape than the picture.
    """
    if not folder.mask_path:
        return None
    mask = masks.get(_key(file.name))
    if mask is None:
        if not folder.settings.is_mask_required:
            return None
        raise TrainerError(
            f"mask missing for {file.name}: add {_key(file.name)}.png to mask_folder"
            f" {folder.settings.mask_folder!r}, or turn is_mask_required off to train it whole"
        )
    found = known[mask.path]
    if isinstance(found, UnreadablePicture):
        raise TrainerError(f"mask {mask.name} of {file.name}: {found}")
    if abs(found.width * facts.height - facts.width * found.height) > max(facts.width, facts.height):
        raise TrainerError(
            f"mask {mask.name} has {found.width} x {found.height} pixels but its picture {facts.width} x"
            f" {facts.height}: save it in the picture's size, or another with the same proportions"
        )
    return Mask(name=mask.name, path=mask.path, facts=found)


def _key(name: str) -> str:
    return without_ending(picture_key(name))
