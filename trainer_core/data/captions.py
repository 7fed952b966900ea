"""Where a picture's caption comes from, and how trigger words are put before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_CAPTION_BYTES = 65536
"""Far beyond the 256 tokens that are read; a larger text file is something else."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The caption of one picture, or why there is none."""

    text: str = ""
    """With trigger words, without system prompt."""
    problem: str = ""
    """What is wrong and what to do; empty if the caption can be used."""


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """The text file beside a picture."""

    path: Path | None = None
    """None if there is no such file, or if it may not be read."""
    problem: str = ""
    """Why there is none."""


def _from_text_file(stem: str, caption_file: CaptionFile, fixed_caption: str) -> Caption:
    if caption_file.path is None:
        return Caption(problem=caption_file.problem)
    return read_caption_file(caption_file.path)


def _from_file_name(stem: str, caption_file: CaptionFile, fixed_caption: str) -> Caption:
    return Caption(text=" ".join(stem.replace("_", " ").split()))


def _from_setting(stem: str, caption_file: CaptionFile, fixed_caption: str) -> Caption:
    return Caption(text=join_lines(fixed_caption))


CAPTION_SOURCES: dict[str, Callable[[str, CaptionFile, str], Caption]] = {
    "textfile": _from_text_file,
    "filename": _from_file_name,
    "one_text": _from_setting,
}
"""Each takes the picture's file name without ending, the text file beside it and the caption typed for all."""


def make_caption(
    source: str, *, stem: str, caption_file: CaptionFile, fixed_caption: str, trigger_words: str
) -> Caption:
    """The caption as it is trained, trigger words included.

    Args:
        source: Key of CAPTION_SOURCES.
        stem: The picture's file name without ending.
        caption_file: The text file beside the picture.
        fixed_caption: The caption typed for all pictures.
        trigger_words: Put first; may be empty.
    """
    caption = CAPTION_SOURCES[source](stem, caption_file, fixed_caption)
    if caption.problem:
        return caption
    text = add_trigger_words(trigger_words, caption.text)
    return Caption(text=text) if text else Caption(problem="the caption is empty: write one, or set trigger_words")


def read_caption_file(path: Path) -> Caption:
    """One caption from a UTF-8 text file; all its lines together are the caption."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return Caption(problem=f"{path.name} cannot be read ({error.strerror}): check its permissions")
    if len(content) > MAX_CAPTION_BYTES:
        return Caption(problem=f"{path.name} is larger than {MAX_CAPTION_BYTES // 1024} KiB: shorten it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Caption(problem=f"{path.name} is not UTF-8 text: save it as UTF-8")
    if "\0" in text:
        return Caption(problem=f"{path.name} is not text: it holds zero bytes, save it as UTF-8")
    return Caption(text=join_lines(text))


def join_lines(text: str) -> str:
    """One line: the lines in order with a space between them, empty ones left out.

    Tools that write one tag a line, paragraphs of long descriptions and a stray newline at the end all come out as
    what their author meant; nothing of a caption is dropped.
    """
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def add_trigger_words(trigger_words: str, caption: str) -> str:
    """`<trigger words>, <caption>`: the one place for this comma.

    A caption that starts with the trigger words already stays as it is; an empty one becomes the trigger words alone.
    """
    trigger_words = clean_trigger_words(trigger_words)
    if not trigger_words or caption == trigger_words or caption.startswith(f"{trigger_words},"):
        return caption
    return f"{trigger_words}, {caption}" if caption else trigger_words


def clean_trigger_words(trigger_words: str) -> str:
    """On one line, without the comma that people type after them."""
    return join_lines(trigger_words).strip(", ")


def is_valid_text(text: str) -> bool:
    """Whether text can be written as UTF-8; names of files and JSON escapes may hold what cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
