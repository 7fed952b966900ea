"""Which folders are trained on, and how: what travels on the LUMINA2_DATASET socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..context import DEMO_DIR, StepContext
from ..errors import TrainerError
from ..settings import check_settings, setting
from .buckets import ASPECTS, GRID
from .captions import CAPTION_SOURCES, add_trigger_words, is_valid_text, join_lines

DEMO_FOLDER = "demo"


@dataclass(frozen=True, kw_only=True)
class DatasetFolderSettings:
    """Widgets of Dataset Folder."""

    folder: str = setting("")
    """Folder with the pictures: a path inside ComfyUI's input folder, or an absolute path inside an allowed
    folder; "demo" is the dataset in this pack."""
    resolution: int = setting(1024, minimum=64, maximum=4096, step=64)
    """Side in pixels of the square whose area every picture is scaled to."""
    aspect: str = setting("buckets", choices=ASPECTS)
    """"buckets" keeps each picture's shape as well as a 64-pixel grid allows and crops the rest from the
    centre; "square" crops everything square."""
    caption_source: str = setting("textfile", choices=CAPTION_SOURCES)
    """Where captions come from: "textfile", a .txt beside the picture with the same name; "filename",
    the picture's name with underscores as spaces; "one_text", the caption below for all."""
    caption: str = setting("", multiline=True)
    """The caption of every picture when caption_source is "one_text"."""
    trigger_words: str = setting("")
    """Words put before every caption, with a comma; type them in the prompt to call up what was learned.
    Kept in the adapter's metadata."""
    repeats: int = setting(1, minimum=1, maximum=10000)
    """How often each picture counts in one pass over the data; balances folders of different size."""
    include_subfolders: bool = setting(True)
    """Also read pictures in folders inside this folder."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.resolution % GRID:
            below = self.resolution // GRID * GRID
            raise TrainerError(
                f"resolution is {self.resolution}: it must be a multiple of {GRID}, such as {below} or {below + GRID}"
            )
        for name in ("caption", "trigger_words"):
            if not is_valid_text(getattr(self, name)):
                raise TrainerError(f"{name} is {getattr(self, name)!r}: it holds half of a character, type it again")
        if self.caption_source == "one_text" and not add_trigger_words(self.trigger_words, join_lines(self.caption)):
            raise TrainerError("caption is empty: write one, or set caption_source to textfile or filename")


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """One folder with its settings; `path` is resolved and allowed."""

    path: str
    settings: DatasetFolderSettings


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Folders that are trained on together; holds no pictures."""

    folders: tuple[DatasetFolder, ...]


def open_dataset(settings: DatasetFolderSettings, *, earlier: Dataset | None = None, context: StepContext) -> Dataset:
    """Resolve a folder and add it to an earlier dataset, if there is one.

    Raises:
        TrainerError: The folder is missing, not a folder, or outside of the allowed ones.
    """
    folder = DatasetFolder(path=str(_resolve_folder(settings.folder, context)), settings=settings)
    return Dataset(folders=(*(earlier.folders if earlier else ()), folder))


def _resolve_folder(name: str, context: StepContext) -> Path:
    if not name.strip():
        raise TrainerError('folder is empty: name a folder with pictures, or "demo"')
    path = DEMO_DIR / "dataset" if name == DEMO_FOLDER else context.resolve_inside_roots(name, "folder")
    if not path.is_dir():
        raise TrainerError(f"folder {name!r} is not a folder: name the folder the pictures lie in")
    return path.resolve()
