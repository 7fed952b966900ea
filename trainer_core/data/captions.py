"""Where a picture's captions come from, and what is made of each: trigger words, lines, shuffled tags."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..seeds import derive_seed
from .caption_tables import TABLE_READERS, CaptionTable

MAX_CAPTION_BYTES = 65536
"""Far beyond the 256 tokens that are read; a larger text file is something else."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The captions of one picture, or why there is none."""

    texts: tuple[str, ...] = ()
    """With trigger words, without system prompt. One is drawn each time the picture is trained on."""
    problem: str = ""
    """What is wrong and what to do; empty if the captions can be used."""

    @property
    def text(self) -> str:
        """The first caption; empty if there is none."""
        return self.texts[0] if self.texts else ""


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """The text file beside a picture."""

    path: Path | None = None
    """None if there is no such file, or if it may not be read."""
    problem: str = ""
    """Why there is none."""


@dataclass(frozen=True, kw_only=True)
class CaptionPlan:
    """How the captions of one folder are made."""

    source: str
    """Key of CAPTION_SOURCES."""
    fixed_caption: str = ""
    """The caption typed for all pictures."""
    lines: str = "join"
    """Key of CAPTION_LINES."""
    trigger_words: str = ""
    """Put first; may be empty."""
    num_tag_shuffles: int = 0
    num_tags_kept: int = 0
    tag_separator: str = ","
    table: CaptionTable | None = None
    """Where captions are looked up when the source is a key of TABLE_READERS."""


def _from_text_file(plan: CaptionPlan, name: str, caption_file: CaptionFile) -> Caption:
    if caption_file.path is None:
        return Caption(problem=caption_file.problem)
    return read_caption_file(caption_file.path)


def _from_file_name(plan: CaptionPlan, name: str, caption_file: CaptionFile) -> Caption:
    return Caption(texts=(" ".join(Path(name).stem.replace("_", " ").split()),))


def _from_setting(plan: CaptionPlan, name: str, caption_file: CaptionFile) -> Caption:
    return Caption(texts=(plan.fixed_caption,))


def _from_table(plan: CaptionPlan, name: str, caption_file: CaptionFile) -> Caption:
    assert plan.table is not None, "a table is read before its captions are looked up"
    row = plan.table.find(name)
    if row is None:
        return Caption(problem=f"no row of {plan.table.name} names it: add one, or remove the picture")
    if not all(map(is_valid_text, row.captions)):
        return Caption(problem=f"{plan.table.name} {row.place} holds half of a character: write the caption again")
    return Caption(texts=row.captions, problem=row.problem)


CAPTION_SOURCES: dict[str, Callable[[CaptionPlan, str, CaptionFile], Caption]] = {
    "textfile": _from_text_file,
    "filename": _from_file_name,
    "one_text": _from_setting,
    **dict.fromkeys(TABLE_READERS, _from_table),
}
"""Each takes the plan, the picture's path inside the folder and the text file beside it; lines are as written."""


def join_lines(text: str) -> str:
    """One line: the lines in order with a space between them, empty ones left out.

    Tools that write one tag a line, paragraphs of long descriptions and a stray newline at the end all come out as
    what their author meant; nothing of a caption is dropped.
    """
    return " ".join(split_lines(text))


def split_lines(text: str) -> tuple[str, ...]:
    """The lines that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _join_to_one(text: str) -> tuple[str, ...]:
    joined = join_lines(text)
    return (joined,) if joined else ()


CAPTION_LINES: dict[str, Callable[[str], tuple[str, ...]]] = {"join": _join_to_one, "one_each": split_lines}
"""What the lines of a caption are: parts of one caption, or a caption each."""


def make_caption(plan: CaptionPlan, *, name: str, caption_file: CaptionFile) -> Caption:
    """The captions of a picture as they are trained, trigger words and shuffled orders included.

    Args:
        plan: How the folder's captions are made.
        name: The picture's path inside the folder, with forward slashes.
        caption_file: The text file beside the picture.
    """
    found = CAPTION_SOURCES[plan.source](plan, name, caption_file)
    if found.problem:
        return found
    texts = [line for text in found.texts for line in CAPTION_LINES[plan.lines](text)] or [""]
    wholes = [whole for text in texts for whole in (add_trigger_words(plan.trigger_words, text), *_shuffle(plan, text))]
    texts = [text for text in dict.fromkeys(wholes) if text]
    return (
        Caption(texts=tuple(texts))
        if texts
        else Caption(problem="the caption is empty: write one, or set trigger_words")
    )


def _shuffle(plan: CaptionPlan, text: str) -> list[str]:
    """Further orders of a caption's tags; trigger words at its beginning stay there."""
    trigger_words = clean_trigger_words(plan.trigger_words)
    tags = shuffle_tags(
        text.removeprefix(f"{trigger_words},") if trigger_words else text,
        num_shuffles=plan.num_tag_shuffles,
        num_kept=plan.num_tags_kept,
        separator=plan.tag_separator,
    )
    return [add_trigger_words(trigger_words, shuffled) for shuffled in tags]


def shuffle_tags(text: str, *, num_shuffles: int, num_kept: int, separator: str) -> list[str]:
    """Other orders of a caption's tags, the same every time.

    Args:
        text: Tags with the separator between them.
        num_shuffles: Orders wanted; as many as there are if there are fewer.
        num_kept: Tags at the beginning that stay where they are.
        separator: Between two tags; spaces around it don't count.
    """
    tags = [tag.strip() for tag in text.split(separator) if tag.strip()]
    kept, moving = tags[:num_kept], tags[num_kept:]
    joint = separator if separator.isspace() else f"{separator} "
    seen = {tuple(moving)}
    orders: list[str] = []
    rng = random.Random(derive_seed(0, "tags", text))
    for _ in range(num_shuffles):
        order = list(moving)
        rng.shuffle(order)
        if tuple(order) not in seen:
            seen.add(tuple(order))
            orders.append(joint.join([*kept, *order]))
    return orders


def read_caption_file(path: Path) -> Caption:
    """One caption from a UTF-8 text file, with its lines."""
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
    return Caption(texts=(text,))


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


def escape_invalid(text: str) -> str:
    """Text that can be written as UTF-8, with codes for what cannot."""
    return text.encode("utf-8", "backslashreplace").decode()
