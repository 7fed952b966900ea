"""A dataset as it is trained on: every picture with its bucket and caption, and everything that is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..context import StepContext
from ..errors import TrainerError
from .caption_tables import TABLE_READERS, CaptionTable, read_table
from .captions import Caption, CaptionPlan, escape_invalid, make_caption
from .folder import Dataset, DatasetFolder
from .images import UnreadablePicture
from .listing import FolderListing, PictureFile, SkippedFile, find_table, list_folder
from .masks import Mask, Masks, find_masks, mask_of
from .picture_index import PictureFacts, examine_pictures
from .sizing import Box, Bucket, SizedPicture, size_picture


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture that is trained on."""

    id: str
    """`<folder number>/<path inside the folder>`; folders count from 1 in the order they were added."""
    path: Path
    facts: PictureFacts
    bucket: Bucket
    boxes: tuple[Box, ...]
    """The parts of it that become latents; one is drawn each time it is trained on."""
    caption: Caption
    repeats: int
    mask: Mask | None = None


@dataclass(frozen=True, kw_only=True)
class ScannedFolder:
    """One folder of a dataset."""

    number: int
    folder: DatasetFolder
    pictures: tuple[Picture, ...]
    skipped: tuple[SkippedFile, ...]
    """Pictures that are not used, by id."""
    ignored: tuple[str, ...]
    """Ids of files that are neither pictures nor captions of one."""
    unread_folders: tuple[str, ...]
    """Ids of subfolders left out because include_subfolders is off."""
    unused_rows: tuple[str, ...] = ()
    """Rows of the caption table that name no picture of the folder."""


@dataclass(frozen=True, kw_only=True)
class ScannedDataset:
    """All folders of a dataset."""

    folders: tuple[ScannedFolder, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Of all folders, in the order they are cached and numbered in."""
        return tuple(picture for folder in self.folders for picture in folder.pictures)

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Of all folders."""
        return tuple(skipped for folder in self.folders for skipped in folder.skipped)


def scan_dataset(dataset: Dataset, context: StepContext) -> ScannedDataset:
    """List the folders, decode what is new, and give every picture its bucket and caption.

    Raises:
        StopTraining: The user asked to stop.
        TrainerError: A folder is gone, or holds nothing that can be used.
    """
    for folder in dataset.folders:
        if not Path(folder.path).is_dir():
            raise TrainerError(
                f"folder {folder.settings.folder!r} is gone: bring it back, or queue Dataset Folder again"
            )
    listings = [list_folder(folder, context) for folder in dataset.folders]
    tables = [_read_captions(folder, context) for folder in dataset.folders]
    masks = [find_masks(folder, context) for folder in dataset.folders]
    facts = examine_pictures(
        [file for listing in listings for file in listing.pictures] + [file for one in masks for file in one.values()],
        context,
    )
    return ScannedDataset(
        folders=tuple(
            _scan_folder(number, folder, listing, table, of_folder, facts)
            for number, (folder, listing, table, of_folder) in enumerate(
                zip(dataset.folders, listings, tables, masks, strict=True), start=1
            )
        )
    )


def _read_captions(folder: DatasetFolder, context: StepContext) -> CaptionTable | None:
    """The table with a folder's captions, if that is where they come from."""
    settings = folder.settings
    if settings.caption_source not in TABLE_READERS:
        return None
    return read_table(find_table(folder, context), settings.caption_source, settings.columns)


def _scan_folder(
    number: int,
    folder: DatasetFolder,
    listing: FolderListing,
    table: CaptionTable | None,
    masks: Masks,
    facts: dict[Path, PictureFacts | UnreadablePicture],
) -> ScannedFolder:
    pictures = []
    plan, sizes = _plan_captions(folder, table), folder.settings.size_plan
    skipped = [SkippedFile(name=f"{number}/{refused.name}", reason=refused.reason) for refused in listing.refused]
    for file in listing.pictures:
        found = facts[file.path]
        if isinstance(found, UnreadablePicture):
            sized: SizedPicture | str = str(found)
        else:
            sized = size_picture(sizes, found.width, found.height, found.content_hash)
        if isinstance(found, UnreadablePicture) or isinstance(sized, str):
            skipped.append(SkippedFile(name=f"{number}/{file.name}", reason=str(sized)))
        else:
            mask = mask_of(folder, masks, file, found, facts)
            pictures.append(_describe_picture(number, folder, plan, file, found, sized, mask))
    if not pictures:
        first = f"; the first of {len(skipped)} left out: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise TrainerError(
            f"folder {folder.settings.folder!r} holds no picture that can be used:"
            f" put jpg, png, webp, avif or bmp files there{first}"
        )
    return ScannedFolder(
        number=number,
        folder=folder,
        pictures=tuple(pictures),
        skipped=tuple(skipped),
        ignored=tuple(f"{number}/{name}" for name in listing.ignored if not _is_table(folder, name, table)),
        unread_folders=tuple(f"{number}/{name}" for name in listing.unread_folders),
        unused_rows=_describe_unused_rows(number, table, [file.name for file in listing.pictures]),
    )


def _plan_captions(folder: DatasetFolder, table: CaptionTable | None) -> CaptionPlan:
    settings = folder.settings
    return CaptionPlan(
        source=settings.caption_source,
        fixed_caption=settings.caption,
        lines=settings.caption_lines,
        trigger_words=settings.trigger_words,
        num_tag_shuffles=settings.num_tag_shuffles,
        num_tags_kept=settings.num_tags_kept,
        tag_separator=settings.tag_separator,
        table=table,
    )


def _is_table(folder: DatasetFolder, name: str, table: CaptionTable | None) -> bool:
    return table is not None and (Path(folder.path) / name).resolve() == table.path.resolve()


def _describe_unused_rows(number: int, table: CaptionTable | None, names: list[str]) -> tuple[str, ...]:
    if table is None:
        return ()
    return tuple(f"{number}/{table.name} {row.place}: {escape_invalid(row.file)}" for row in table.unused(names))


def _describe_picture(
    number: int,
    folder: DatasetFolder,
    plan: CaptionPlan,
    file: PictureFile,
    facts: PictureFacts,
    sized: SizedPicture,
    mask: Mask | None,
) -> Picture:
    return Picture(
        id=f"{number}/{file.name}",
        path=file.path,
        facts=facts,
        bucket=sized.bucket,
        boxes=sized.boxes,
        caption=make_caption(plan, name=file.name, caption_file=file.caption_file),
        repeats=folder.settings.repeats,
        mask=mask,
    )
