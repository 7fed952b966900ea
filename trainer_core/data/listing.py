"""Which files a dataset folder holds, without opening any of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..context import StepContext
from ..errors import TrainerError
from .caption_tables import TABLE_READERS, picture_key
from .captions import CaptionFile, escape_invalid, is_valid_text
from .folder import DatasetFolder, DatasetFolderSettings, open_dataset
from .images import PICTURE_SUFFIXES

CAPTION_SUFFIX = ".txt"
NO_CAPTION_FILE = CaptionFile(problem="no text file: add one of the same name ending in .txt, or change caption_source")


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A picture found in a folder."""

    path: Path
    name: str
    """Path inside the folder, with forward slashes."""
    size: int
    """Bytes."""
    mtime_ns: int
    caption_file: CaptionFile


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """Something that is not used, and why."""

    name: str
    reason: str


@dataclass(kw_only=True)
class FolderListing:
    """What a folder holds; filled while it is walked."""

    pictures: list[PictureFile] = field(default_factory=list)
    """In natural order of their names."""
    refused: list[SkippedFile] = field(default_factory=list)
    """Pictures and folders that may not or cannot be read."""
    ignored: list[str] = field(default_factory=list)
    """Names of files that are neither pictures nor captions of one."""
    unread_folders: list[str] = field(default_factory=list)
    """Subfolders left out because include_subfolders is off."""


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts picture2 before picture10, and never calls two names equal."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def list_folder(folder: DatasetFolder, context: StepContext) -> FolderListing:
    """Find the pictures of a folder and the text files beside them.

    Links are followed if they lead to a place inside the folder or inside the context's roots. Names that begin with a
    dot are left alone: they are the hidden files of systems and tools.
    """
    walk = _start_walk(folder.path, folder, context)
    if folder.mask_path:
        walk.left_out.add(Path(folder.mask_path))
    walk.read(walk.root)
    walk.found.pictures.sort(key=lambda picture: natural_key(picture.name))
    walk.found.refused.sort(key=lambda skipped: natural_key(skipped.name))
    walk.found.ignored.sort(key=natural_key)
    return walk.found


def list_pictures(path: str, folder: DatasetFolder, context: StepContext) -> list[PictureFile]:
    """The pictures of another folder, found as those of `folder` are; files that may not be read are none of them."""
    walk = _start_walk(path, folder, context)
    walk.read(walk.root)
    return walk.found.pictures


def _start_walk(path: str, folder: DatasetFolder, context: StepContext) -> _Walk:
    return _Walk(root=Path(path), is_allowed=_link_check(context), is_deep=folder.settings.include_subfolders)


def find_table(folder: DatasetFolder, context: StepContext) -> Path:
    """The file that holds a folder's captions, where its caption_source is a table.

    Raises:
        TrainerError: There is none, there are several, or it may not be read.
    """
    root, source, name = Path(folder.path), folder.settings.caption_source, folder.settings.metadata_file
    if name:
        path = _resolve_table(root, name, context)
    else:
        found = sorted(p.name for p in root.iterdir() if p.suffix.lower() == f".{source}" and p.name[0] != ".")
        if len(found) != 1:
            held = f"{len(found)} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})" if found else "none"
            raise TrainerError(
                f"caption_source is {source!r}, but of files ending in .{source} {folder.settings.folder!r} holds"
                f" {held}: name one in metadata_file"
            )
        path = context.resolve_inside_roots(str(root / found[0]), "metadata_file")
    if not path.is_file():
        raise TrainerError(f"metadata_file {name or path.name!r} is not a file: name the {source} table")
    return path


def _resolve_table(root: Path, name: str, context: StepContext) -> Path:
    """A table named relative to the folder, or as folders are."""
    try:
        return context.resolve_inside_roots(str(root / name), "metadata_file")
    except TrainerError:
        return context.resolve_inside_roots(name, "metadata_file")


def fingerprint_dataset_folder(
    folder: str, context: StepContext, metadata_file: str = "", mask_folder: str = ""
) -> str:
    """Changes when a picture or caption is added, removed, renamed or rewritten; reads no file, so it is cheap.

    A folder that cannot be opened gives the error's text, for the error itself belongs to the step.

    Args:
        folder: As typed.
        context: Where folders may lie.
        metadata_file: As typed; a table that lies inside the folder is noticed without being named.
        mask_folder: As typed; masks are noticed as pictures are.
    """
    try:
        dataset = open_dataset(DatasetFolderSettings(folder=folder, mask_folder=mask_folder), context=context)
    except TrainerError as error:
        return str(error)
    listing = list_folder(dataset.folders[0], context)
    files = [(p.name, p.size, p.mtime_ns, _caption_state(p.caption_file)) for p in listing.pictures]
    root = Path(dataset.folders[0].path)
    tables = [root / name for name in listing.ignored if Path(name).suffix.lower()[1:] in TABLE_READERS]
    if metadata_file:
        try:
            tables.append(_resolve_table(root, metadata_file, context))
        except TrainerError as error:
            return str(error)
    table_states = [_caption_state(CaptionFile(path=path)) for path in tables]
    if mask_folder:
        masks = list_pictures(dataset.folders[0].mask_path, dataset.folders[0], context)
        files += [(mask.name, mask.size, mask.mtime_ns, "mask") for mask in masks]
    state = [files, [(s.name, s.reason) for s in listing.refused], listing.ignored, table_states]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _caption_state(caption_file: CaptionFile) -> tuple[int, int] | str:
    if caption_file.path is None:
        return caption_file.problem
    try:
        status = caption_file.path.stat()
    except OSError as error:  # removed since it was listed
        return str(error)
    return status.st_size, status.st_mtime_ns


def _link_check(context: StepContext) -> Callable[[Path], bool]:
    def is_allowed(path: Path) -> bool:
        try:
            context.resolve_inside_roots(str(path), "link")
        except TrainerError:
            return False
        return True

    return is_allowed


@dataclass(kw_only=True)
class _Walk:
    root: Path
    is_allowed: Callable[[Path], bool]
    is_deep: bool
    found: FolderListing = field(default_factory=FolderListing)
    seen: set[Path] = field(default_factory=set)
    left_out: set[Path] = field(default_factory=set)
    """Folders that are another's business, such as masks."""

    def read(self, directory: Path) -> None:
        self.seen.add(directory.resolve())
        try:
            with os.scandir(directory) as entries:
                names = sorted((Path(entry.path) for entry in entries), key=lambda path: natural_key(path.name))
        except OSError as error:
            self.refuse(directory, f"cannot be read ({error.strerror}): check its permissions")
            return
        captions: dict[str, CaptionFile] = {}
        pictures = []
        for path, status in self.usable(names):
            if stat.S_ISDIR(status.st_mode):
                self.enter(path)
            elif path.suffix.lower() in PICTURE_SUFFIXES:
                pictures.append((path, status))
            elif path.suffix.lower() == CAPTION_SUFFIX:
                captions.setdefault(path.stem, CaptionFile(path=path))
            else:
                self.found.ignored.append(self.name_of(path))
        self.pair(pictures, captions, names)

    def usable(self, paths: list[Path]) -> Iterator[tuple[Path, os.stat_result]]:
        """The entries of a directory that may be read; what may not is reported."""
        for path in paths:
            if path.name.startswith("."):
                continue
            reason = "" if is_valid_text(path.name) else "its name is not UTF-8: rename it"
            try:
                status = path.stat()
            except OSError as error:
                self.refuse(path, f"cannot be read ({error.strerror}): remove it, or repair the link")
                continue
            if path.is_symlink() and not self.may_follow(path.resolve()):
                reason = "a link to a place outside of the allowed folders: copy the file here"
            elif not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                reason = "not a regular file"
            if reason:
                self.refuse(path, reason)
            else:
                yield path, status

    def may_follow(self, target: Path) -> bool:
        return target.is_relative_to(self.root) or self.is_allowed(target)

    def enter(self, directory: Path) -> None:
        if directory.resolve() in self.left_out:
            return
        if not self.is_deep:
            self.found.unread_folders.append(self.name_of(directory))
        elif directory.resolve() in self.seen:
            self.refuse(directory, "a link to a folder that is read already")
        else:
            self.read(directory)

    def pair(
        self, pictures: list[tuple[Path, os.stat_result]], captions: dict[str, CaptionFile], names: list[Path]
    ) -> None:
        """Put text files to the pictures of one directory; those without a picture are listed as ignored.

        Of two names that are one when composed, a picture takes the text file of its very spelling.
        """
        composed = {picture_key(stem): caption_file for stem, caption_file in captions.items()}
        texts = (path.stem for path in names if path.suffix.lower() == CAPTION_SUFFIX)
        refused = {picture_key(stem) for stem in texts if stem not in captions}
        for path, status in pictures:
            key = picture_key(path.stem)
            missing = NO_CAPTION_FILE
            if key in refused:
                missing = CaptionFile(
                    problem=f"{path.stem}{CAPTION_SUFFIX} may not be read, see the list of left out files"
                )
            self.found.pictures.append(
                PictureFile(
                    path=path,
                    name=self.name_of(path),
                    size=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    caption_file=captions.get(path.stem) or composed.get(key, missing),
                )
            )
        keys = {picture_key(path.stem) for path, _ in pictures}
        self.found.ignored += [
            self.name_of(c.path) for stem, c in captions.items() if c.path and picture_key(stem) not in keys
        ]

    def name_of(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def refuse(self, path: Path, reason: str) -> None:
        self.found.refused.append(SkippedFile(name=escape_invalid(self.name_of(path)), reason=reason))
