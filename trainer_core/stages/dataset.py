"""Naming pictures as a dataset, and reporting on it: those of a folder, or of the graph, which are written to one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..context import RUNS_FOLDER, StepContext
from ..data.caption_rows import CaptionCounter
from ..data.captions import clean_trigger_words, is_valid_text, split_lines
from ..data.contact_sheet import draw_contact_sheet
from ..data.folder import Dataset, DatasetFolderSettings, add_folder, open_dataset
from ..data.picture_set import CaptionedPixels, Pixels, read_picture_set, to_pixels, write_picture_set
from ..data.progress import Progress
from ..data.report import write_report
from ..data.scan import scan_dataset
from ..errors import TrainerError
from ..lumina2.encoders.prompts import MAX_PROMPT_TOKENS, SYSTEM_PROMPTS, build_prompt
from ..settings import check_file_name, check_settings, describe_settings, same_as, setting

logger = logging.getLogger(__name__)

DATASETS_FOLDER = "datasets"
"""Below the runs folder."""
PROGRESS_RUN = "dataset_folder"

GUESS = CaptionCounter(
    limit=MAX_PROMPT_TOKENS, build_prompt=lambda caption: build_prompt(caption, SYSTEM_PROMPTS["superior"])
)
"""No model is known yet, so captions are measured by their bytes, behind the usual system prompt."""


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What the nodes that name a dataset found."""

    dataset: Dataset
    text: str
    """Counts, buckets, warnings; for people."""
    contact_sheet_path: Path
    """PNG with thumbnails, captions and buckets."""


def report_dataset(dataset: Dataset, context: StepContext) -> DatasetReport:
    """Read a dataset's folders and report on them.

    Raises:
        TrainerError: A folder is gone, or holds nothing that can be used.
        StopTraining: The user asked to stop.
    """
    scanned = scan_dataset(dataset, context)
    sheet_path = draw_contact_sheet(scanned, context.cache_dir / "contact_sheets")
    return DatasetReport(dataset=dataset, text=write_report(scanned, GUESS), contact_sheet_path=sheet_path)


def read_dataset_folder(
    settings: DatasetFolderSettings, *, dataset: Dataset | None = None, context: StepContext
) -> DatasetReport:
    """Read a folder and report on it; `dataset` is an earlier one to add to."""
    return report_dataset(open_dataset(settings, earlier=dataset, context=context), context)


@dataclass(frozen=True, kw_only=True)
class DatasetFromImagesSettings:
    """Widgets of Dataset From Images."""

    name: str = setting("my_pictures")
    """Folder in `lumina2_trainer/datasets` of the output folder that the pictures are written to. Each node needs a
    name of its own: other pictures under the same name replace these."""
    captions: str = setting("", multiline=True)
    """One caption a line, in the order of the pictures, or one line for all of them."""
    resolution: int = same_as(DatasetFolderSettings, "resolution")
    aspect: str = same_as(DatasetFolderSettings, "aspect")
    trigger_words: str = same_as(DatasetFolderSettings, "trigger_words")
    repeats: int = same_as(DatasetFolderSettings, "repeats")
    num_tag_shuffles: int = same_as(DatasetFolderSettings, "num_tag_shuffles")
    num_tags_kept: int = same_as(DatasetFolderSettings, "num_tags_kept")
    tag_separator: str = same_as(DatasetFolderSettings, "tag_separator")
    crop_style: str = same_as(DatasetFolderSettings, "crop_style")
    num_crops: int = same_as(DatasetFolderSettings, "num_crops")
    aspect_ratios: str = same_as(DatasetFolderSettings, "aspect_ratios")
    resolution_type: str = same_as(DatasetFolderSettings, "resolution_type")
    megapixels: float = same_as(DatasetFolderSettings, "megapixels")
    more_resolutions: str = same_as(DatasetFolderSettings, "more_resolutions")
    minimum_image_size: float = same_as(DatasetFolderSettings, "minimum_image_size")
    maximum_image_size: float = same_as(DatasetFolderSettings, "maximum_image_size")
    target_downsample_size: float = same_as(DatasetFolderSettings, "target_downsample_size")
    probability: float = same_as(DatasetFolderSettings, "probability")
    sampling: str = same_as(DatasetFolderSettings, "sampling")
    is_regularisation: bool = same_as(DatasetFolderSettings, "is_regularisation")
    is_held_out: bool = same_as(DatasetFolderSettings, "is_held_out")

    def __post_init__(self) -> None:
        check_settings(self)
        check_file_name("name", self.name)
        if not is_valid_text(self.captions):
            raise TrainerError(f"captions is {self.captions!r}: it holds half of a character, type it again")
        if not self.lines and not clean_trigger_words(self.trigger_words):
            raise TrainerError("captions is empty: write one line for each picture, or one line for all")
        self.folder_settings  # noqa: B018 - checks what the two nodes share

    @property
    def lines(self) -> tuple[str, ...]:
        """The captions, without empty lines."""
        return split_lines(self.captions)

    @property
    def folder_settings(self) -> DatasetFolderSettings:
        """What Dataset Folder would be set to.

        Raises:
            TrainerError: Its settings contradict each other.
        """
        shared = {field.name for field in describe_settings(DatasetFolderSettings)}
        values = {field.name: getattr(self, field.name) for field in describe_settings(type(self))}
        is_one = len(self.lines) == 1
        return DatasetFolderSettings(
            folder=f"{RUNS_FOLDER}/{DATASETS_FOLDER}/{self.name}",
            caption_source="one_text" if is_one else "textfile",
            caption=self.lines[0] if is_one else "",
            **{name: value for name, value in values.items() if name in shared},
        )


def read_dataset_from_images(
    settings: DatasetFromImagesSettings,
    *,
    images: Sequence[Tensor] | None = None,
    dataset: Dataset | None = None,
    context: StepContext,
) -> DatasetReport:
    """Write pictures and captions, and go on as Dataset Folder does.

    Args:
        settings: Name, captions, and how the folder is read.
        images: Each [B, height, width, channels] in [0, 1]; None where there is no ComfyUI to make them, which takes
            the pictures that were written last.
        dataset: An earlier one to add to.
        context: Where the output folder is.

    Raises:
        TrainerError: The captions don't fit the pictures, the name is taken or leads elsewhere, or there are none.
        StopTraining: The user asked to stop.
    """
    folder = _find_folder(settings.name, context)
    if dataset and any(Path(other.path).parent == folder for other in dataset.folders):
        raise TrainerError(
            f"name is {settings.name!r}, as of another node before this one: choose another, or its pictures are lost"
        )
    pixels = to_pixels(images) if images is not None else _recall(settings.name, folder)
    pictures = _pair(pixels, settings.lines)
    progress = Progress(PROGRESS_RUN, total=len(pictures), num_done=0, context=context)
    path = write_picture_set(folder, pictures, progress)
    return report_dataset(add_folder(path, settings.folder_settings, earlier=dataset), context)


def _find_folder(name: str, context: StepContext) -> Path:
    parent = (context.runs_dir / DATASETS_FOLDER).resolve()
    folder = parent / name
    if folder.resolve() != folder:
        raise TrainerError(f"name is {name!r}, a link that leads out of {parent}: choose another")
    return folder


def _recall(name: str, folder: Path) -> list[Pixels]:
    try:
        pictures = read_picture_set(folder)
    except TrainerError as error:
        raise TrainerError(
            f"images come from nodes that need ComfyUI, and it has left none for name {name!r} ({error}): queue"
            " Dataset From Images there once, and give its output folder with --output"
        ) from error
    logger.warning("%s: images are those that ComfyUI wrote last, %d pictures", name, len(pictures))
    return pictures


def _pair(pictures: Sequence[Pixels], lines: Sequence[str]) -> list[CaptionedPixels]:
    captions = list(lines or [""])
    if len(captions) == 1:
        captions *= len(pictures)
    if len(captions) != len(pictures):
        raise TrainerError(
            f"captions has {len(captions)} lines for {len(pictures)} pictures: write one line for each picture, or one"
            " line for all"
        )
    return [
        CaptionedPixels(pixels=picture, caption=caption) for picture, caption in zip(pictures, captions, strict=True)
    ]
