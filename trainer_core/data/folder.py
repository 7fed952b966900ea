"""Which folders are trained on, and how: what travels on the LUMINA2_DATASET socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..context import DEMO_DIR, StepContext
from ..errors import TrainerError
from ..settings import check_settings, setting
from .caption_tables import TABLE_READERS, Columns
from .captions import CAPTION_LINES, CAPTION_SOURCES, add_trigger_words, is_valid_text, join_lines
from .sizing import (
    ASPECTS,
    CROP_STYLES,
    GRID,
    RESOLUTION_TYPES,
    SizePlan,
    megapixels_to_resolution,
    parse_aspect_ratios,
)

DEMO_FOLDER = "demo"

SAMPLINGS: dict[str, Callable[[float, int], float]] = {
    "auto": lambda probability, num_samples: probability * num_samples,
    "uniform": lambda probability, num_samples: probability,
}
"""The weight of a folder, from its probability and the samples it brings to one pass."""


@dataclass(frozen=True, kw_only=True)
class DatasetFolderSettings:
    """Widgets of Dataset Folder."""

    folder: str = setting("")
    """Folder with the pictures: a path inside ComfyUI's input folder, or an absolute path inside an allowed
    folder; "demo" is the dataset in this pack."""
    resolution: int = setting(1024, minimum=64, maximum=4096, step=64)
    """Side in pixels of the square whose area every picture is scaled to; resolution_type can change what it says."""
    aspect: str = setting("buckets", choices=ASPECTS)
    """"buckets" keeps each picture's shape as well as a 64-pixel grid allows and crops the rest; "square" crops
    everything square; "closest" crops to the nearest of aspect_ratios; "random" to one of them by chance, for each
    picture always the same."""
    caption_source: str = setting("textfile", choices=CAPTION_SOURCES)
    """Where captions come from: "textfile", a .txt beside the picture with the same name; "filename",
    the picture's name with underscores as spaces; "one_text", the caption below for all; "jsonl", "csv" and "parquet",
    a table with a row for each picture, see metadata_file."""
    caption: str = setting("", multiline=True)
    """The caption of every picture when caption_source is "one_text"."""
    trigger_words: str = setting("")
    """Words put before every caption, with a comma; type them in the prompt to call up what was learned.
    Kept in the adapter's metadata."""
    repeats: int = setting(1, minimum=1, maximum=10000)
    """How often each picture counts in one pass over the data; balances folders of different size."""
    include_subfolders: bool = setting(True)
    """Also read pictures in folders inside this folder."""
    metadata_file: str = setting("", is_optional=True)
    """The table when caption_source is "jsonl", "csv" or "parquet": a path inside the folder, or an absolute path
    inside an allowed folder. Empty takes the folder's only file of that ending."""
    file_column: str = setting("file_name", is_optional=True, is_advanced=True)
    """Column of the table with the picture's path inside the folder, with or without its ending."""
    caption_column: str = setting("caption", is_optional=True, is_advanced=True)
    """Column of the table with the caption: a text, or in jsonl and parquet a list of texts, one of which is drawn
    each time."""
    fallback_caption_column: str = setting("", is_optional=True, is_advanced=True)
    """Column of the table that is read where caption_column is empty."""
    caption_lines: str = setting("join", choices=CAPTION_LINES, is_optional=True, is_advanced=True)
    """What the lines of a caption are: "join" makes them one caption; "one_each" makes each line a caption of its own.
    All are cached, and one is drawn each time the picture is trained on."""
    num_tag_shuffles: int = setting(0, minimum=0, maximum=64, is_optional=True, is_advanced=True)
    """Shuffled orders of each caption's tags, cached beside the caption as it is written; one is drawn each time. Each
    takes as long to encode as a caption, and half a MB for 100 tokens. 0 keeps the order."""
    num_tags_kept: int = setting(1, minimum=0, maximum=64, is_optional=True, is_advanced=True)
    """Tags at the beginning of a caption that are never shuffled; trigger words always stay in front."""
    tag_separator: str = setting(",", is_optional=True, is_advanced=True)
    """What stands between two tags."""
    crop_style: str = setting("center", choices=CROP_STYLES, is_optional=True, is_advanced=True)
    """Which part of a picture is kept where something is cropped: the "center", the upper left "corner", or a "random"
    one, for each picture always the same."""
    num_crops: int = setting(1, minimum=1, maximum=64, is_optional=True, is_advanced=True)
    """Random crops of each picture that are cached when crop_style is "random"; one is drawn each time the picture is
    trained on. Each takes as long to encode as a picture, and half a MB at 1024 x 1024."""
    aspect_ratios: str = setting("1:1, 4:3, 3:4, 3:2, 2:3, 16:9, 9:16", is_optional=True, is_advanced=True)
    """Ratios of width to height that aspect "closest" and "random" choose from; one that is listed twice is chosen
    twice as often."""
    resolution_type: str = setting("pixel_area", choices=RESOLUTION_TYPES, is_optional=True, is_advanced=True)
    """"pixel_area": resolution is the side of a square of the wanted area; "pixel": it is the picture's short side;
    "area": megapixels below is used in its place. Minimum, maximum and target size have the same unit."""
    megapixels: float = setting(1.0, minimum=0.01, maximum=16.0, step=0.01, is_optional=True, is_advanced=True)
    """Area of every picture when resolution_type is "area"; 1 is 1024 x 1024. Rounded to a square of a multiple of 64.
    """
    more_resolutions: str = setting("", is_optional=True)
    """Further resolutions at which every picture is trained too, such as "512, 768", in the unit of resolution_type.
    Each is cached and counts as a folder of its own."""
    minimum_image_size: float = setting(
        0.0, minimum=0.0, maximum=16384.0, step=0.01, is_optional=True, is_advanced=True
    )
    """Pictures smaller than this are left out and listed in the report; 0 uses all. Unit: resolution_type."""
    maximum_image_size: float = setting(
        0.0, minimum=0.0, maximum=16384.0, step=0.01, is_optional=True, is_advanced=True
    )
    """Pictures larger than this are first scaled to target_downsample_size, and the crop is cut from that; 0 scales
    every picture so that as much of it as possible is kept. Unit: resolution_type."""
    target_downsample_size: float = setting(
        0.0, minimum=0.0, maximum=16384.0, step=0.01, is_optional=True, is_advanced=True
    )
    """Size of pictures beyond maximum_image_size before they are cropped. Equal to the resolution it changes nothing;
    larger, the crop is a detail. Unit: resolution_type."""
    probability: float = setting(1.0, minimum=1e-6, maximum=1000.0, step=0.01, is_optional=True, is_advanced=True)
    """How often this folder is drawn beside other folders, relative to their probability; see sampling. Equal for all
    folders it changes nothing."""
    sampling: str = setting("auto", choices=SAMPLINGS, is_optional=True, is_advanced=True)
    """How folders are mixed, the same for all of them: "auto" weighs each by its number of pictures, repeats and
    probability; "uniform" by its probability alone, however many pictures it has."""
    is_regularisation: bool = setting(False, is_optional=True)
    """These pictures keep the adapter from drifting: the target is what the base itself predicts for them, not the
    picture. Only for training an adapter; a batch that holds one costs one more forward pass."""
    mask_folder: str = setting("", is_optional=True)
    """Folder with a mask for each picture, of the same path and name: white is learned, black is not. A path inside the
    folder, or as folder is given. Empty trains on whole pictures."""
    mask_outside_weight: float = setting(0.0, minimum=0.0, maximum=1.0, step=0.01, is_optional=True)
    """What the loss counts where a mask is black, beside 1 where it is white; 1 switches the masks off."""
    is_mask_required: bool = setting(True, is_optional=True)
    """A picture without a mask is an error; off, it is trained whole."""
    is_held_out: bool = setting(False, is_optional=True)
    """Nothing is learned from these pictures: the loss is measured on them, as Validation Prompts says, to see what
    was not learned by heart. Copies of them in other folders are not trained on either."""

    def __post_init__(self) -> None:
        if self.crop_style == "face":
            raise TrainerError(
                "crop_style is 'face': faces are not looked for, as that takes a detector whose misses nobody would"
                " see; crop these pictures by hand, or choose center, corner or random"
            )
        check_settings(self)
        if self.is_held_out and self.is_regularisation:
            raise TrainerError(
                "is_held_out and is_regularisation are both on: these pictures are trained on or they are not"
            )
        if self.resolution % GRID:
            below = self.resolution // GRID * GRID
            raise TrainerError(
                f"resolution is {self.resolution}: it must be a multiple of {GRID}, such as {below} or {below + GRID}"
            )
        for name in ("caption", "trigger_words", "tag_separator"):
            if not is_valid_text(getattr(self, name)):
                raise TrainerError(f"{name} is {getattr(self, name)!r}: it holds half of a character, type it again")
        if self.caption_source == "one_text" and not add_trigger_words(self.trigger_words, join_lines(self.caption)):
            raise TrainerError("caption is empty: write one, or set caption_source to textfile or filename")
        if not self.tag_separator:
            raise TrainerError('tag_separator is empty: write what stands between two tags, such as ","')
        if self.caption_source in TABLE_READERS:
            self._check_columns()
        if self.mask_outside_weight and not self.mask_folder.strip():
            raise TrainerError(
                f"mask_outside_weight is {self.mask_outside_weight:g} but mask_folder is empty: name the folder with"
                " the masks, or set it to 0"
            )
        for one in self.split_resolutions():
            one.size_plan  # noqa: B018 - checks the sizes against each other

    def _check_columns(self) -> None:
        for name in ("file_column", "caption_column"):
            if not getattr(self, name):
                raise TrainerError(f"{name} is empty: name a column of the {self.caption_source} table")
        if self.metadata_file and not self.metadata_file.lower().endswith(f".{self.caption_source}"):
            raise TrainerError(
                f"metadata_file is {self.metadata_file!r} but caption_source is {self.caption_source!r}: name a file"
                f" ending in .{self.caption_source}, or change caption_source"
            )

    @property
    def size_plan(self) -> SizePlan:
        """How pictures are sized at the first resolution.

        Raises:
            TrainerError: The sizes contradict each other.
        """
        is_listed = self.aspect in ("closest", "random")
        return SizePlan(
            resolution_type=self.resolution_type,
            resolution=megapixels_to_resolution(self.megapixels) if self.resolution_type == "area" else self.resolution,
            aspect=self.aspect,
            aspect_ratios=parse_aspect_ratios(self.aspect_ratios) if is_listed else (),
            crop_style=self.crop_style,
            num_crops=self.num_crops,
            minimum_image_size=self.minimum_image_size,
            maximum_image_size=self.maximum_image_size,
            target_downsample_size=self.target_downsample_size,
        )

    def split_resolutions(self) -> tuple[DatasetFolderSettings, ...]:
        """These settings for each resolution on its own.

        Raises:
            TrainerError: One of more_resolutions cannot be used, or is there already.
        """
        if not self.more_resolutions.strip():
            return (self,)
        is_area = self.resolution_type == "area"
        name = "megapixels" if is_area else "resolution"
        found = [replace(self, more_resolutions="")]
        for entry in (part.strip() for part in self.more_resolutions.split(",")):
            try:
                found.append(
                    replace(found[0], megapixels=float(entry)) if is_area else replace(found[0], resolution=int(entry))
                )
            except (ValueError, TrainerError) as error:
                raise TrainerError(
                    f"more_resolutions holds {entry!r}: write {name} values with commas between them"
                    f" ({error if isinstance(error, TrainerError) else 'this is no number'})"
                ) from error
            if found[-1].size_plan.buckets in [one.size_plan.buckets for one in found[:-1]]:
                raise TrainerError(f"more_resolutions holds {entry!r}, which is there already: remove it")
        if self.sampling == "uniform":  # a folder's probability is shared by its resolutions
            return tuple(replace(one, probability=self.probability / len(found)) for one in found)
        return tuple(found)

    @property
    def columns(self) -> Columns:
        """Columns of the caption table."""
        return Columns(file=self.file_column, caption=self.caption_column, fallback=self.fallback_caption_column)


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """One folder with its settings; paths are resolved and allowed."""

    path: str
    settings: DatasetFolderSettings
    mask_path: str = ""
    """Of the folder with masks; empty if there are none."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Folders that are trained on together; holds no pictures."""

    folders: tuple[DatasetFolder, ...]


def open_dataset(settings: DatasetFolderSettings, *, earlier: Dataset | None = None, context: StepContext) -> Dataset:
    """Resolve a folder and add it to an earlier dataset, if there is one.

    Raises:
        TrainerError: The folder is missing, not a folder, outside of the allowed ones, or mixed in another way.
    """
    path = _resolve_folder(settings.folder, context)
    mask_path = _resolve_mask_folder(settings.mask_folder, path, context)
    return add_folder(path, settings, earlier=earlier, mask_path=mask_path)


def add_folder(
    path: Path, settings: DatasetFolderSettings, *, earlier: Dataset | None = None, mask_path: str = ""
) -> Dataset:
    """Add a folder, once for each resolution, to an earlier dataset, if there is one.

    Args:
        path: Resolved and allowed.
        settings: How it is read.
        earlier: Comes first.
        mask_path: Of the folder with masks, resolved and allowed; empty if there are none.

    Raises:
        TrainerError: It is mixed in another way than the folders before it.
    """
    first = earlier.folders[0].settings if earlier else settings
    if settings.sampling != first.sampling:
        raise TrainerError(
            f"sampling is {settings.sampling!r} for folder {settings.folder!r} but {first.sampling!r} for"
            f" {first.folder!r}: choose the same for all folders of a dataset"
        )
    folders = (DatasetFolder(path=str(path), settings=one, mask_path=mask_path) for one in settings.split_resolutions())
    return Dataset(folders=(*(earlier.folders if earlier else ()), *folders))


def _resolve_folder(name: str, context: StepContext) -> Path:
    if not name.strip():
        raise TrainerError('folder is empty: name a folder with pictures, or "demo"')
    path = DEMO_DIR / "dataset" if name == DEMO_FOLDER else context.resolve_inside_roots(name, "folder")
    if not path.is_dir():
        raise TrainerError(f"folder {name!r} is not a folder: name the folder the pictures lie in")
    return path.resolve()


def _resolve_mask_folder(name: str, root: Path, context: StepContext) -> str:
    """A folder named relative to that of the pictures, or as that is."""
    if not name.strip():
        return ""
    try:
        path = context.resolve_inside_roots(str(root / name), "mask_folder")
    except TrainerError:
        path = context.resolve_inside_roots(name, "mask_folder")
    if not path.is_dir() or root.is_relative_to(path):
        raise TrainerError(
            f"mask_folder {name!r} {'holds the pictures themselves' if path.is_dir() else 'is not a folder'}: name a"
            " folder with masks alone"
        )
    return str(path.resolve())
