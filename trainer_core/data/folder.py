"""Reading a folder of captioned pictures: what travels on the LUMINA2_DATASET socket."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import check_settings, setting

ASPECTS = ("buckets", "square")
CAPTION_SOURCES = ("textfile", "filename", "one_text")


@dataclass(frozen=True, kw_only=True)
class DatasetFolderSettings:
    """Widgets of Dataset Folder."""

    folder: str = setting("")
    """Folder with the pictures: a path inside ComfyUI's input folder, or an absolute path inside an allowed folder; "demo" is the dataset in this pack."""
    resolution: int = setting(1024, minimum=64, maximum=4096, step=64)
    """Side in pixels of the square whose area every picture is scaled to."""
    aspect: str = setting("buckets", choices=ASPECTS)
    """"buckets" keeps each picture's shape as well as a 64-pixel grid allows and crops the rest from the centre; "square" crops everything square."""
    caption_source: str = setting("textfile", choices=CAPTION_SOURCES)
    """Where captions come from: "textfile", a .txt beside the picture with the same name; "filename", the picture's name with underscores as spaces; "one_text", the caption below for all."""
    caption: str = setting("", multiline=True)
    """The caption of every picture when caption_source is "one_text"."""
    trigger_words: str = setting("")
    """Words put before every caption, with a comma; type them in the prompt to call up what was learned. Kept in the adapter's metadata."""
    repeats: int = setting(1, minimum=1, maximum=10000)
    """How often each picture counts in one pass over the data; balances folders of different size."""
    include_subfolders: bool = setting(True)
    """Also read pictures in folders inside this folder."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """One folder with its settings; `path` is resolved and allowed."""

    path: str
    settings: DatasetFolderSettings


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Folders that are trained on together; holds no pictures."""

    folders: tuple[DatasetFolder, ...]
