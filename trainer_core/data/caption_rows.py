"""The captions of a dataset as rows that a person looks through, with what is wrong about each."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .folder import Dataset
from .scan import Picture, ScannedDataset

BYTES_PER_TOKEN = 4
"""What Gemma's tokens take of UTF-8 text in most languages, for an estimate where its tokenizer is not at hand."""
MAX_SHOWN_LETTERS = 2000
"""Of one caption on the canvas."""
BETWEEN_CAPTIONS = " | "
"""Stands between a picture's captions in a cell of the text."""


@dataclass(frozen=True, kw_only=True)
class CaptionCounter:
    """How long a prompt is, and how long it may be."""

    limit: int
    """Tokens that training reads of a prompt."""
    build_prompt: Callable[[str], str]
    """Puts the system prompt before a caption."""
    count_tokens: Callable[[str], int] | None = None
    """Counts a prompt's tokens; None if there is no tokenizer."""

    @property
    def unit(self) -> str:
        """What `measure` counts."""
        return "tokens" if self.count_tokens else "characters"

    def measure(self, caption: str) -> int:
        """Tokens of the prompt with the caption, or characters of the caption alone."""
        return self.count_tokens(self.build_prompt(caption)) if self.count_tokens else len(caption)

    def find_length_mark(self, caption: str) -> str:
        """A key of MARKS if the end of the caption is not read, or perhaps not; else empty."""
        if self.count_tokens:
            return "long" if self.measure(caption) > self.limit else ""
        num_bytes = len(self.build_prompt(caption).encode())
        return "perhaps_long" if num_bytes > self.limit * BYTES_PER_TOKEN else ""


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """One picture."""

    picture: str
    """Its id."""
    bucket: str
    captions: tuple[str, ...]
    """As training reads them, without system prompt."""
    problem: str
    """Why there is no caption."""
    length: int
    """Of the longest caption, in the counter's unit."""
    num_sharing: int
    """Pictures with these very captions, this one included; 1 where they share one because that was asked for."""
    length_mark: str
    """See `CaptionCounter.find_length_mark`."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Keys of MARKS."""
        found = {"missing": bool(self.problem), "shared": self.num_sharing > 1, self.length_mark: True}
        return tuple(mark for mark in MARKS if found.get(mark))


MARKS: dict[str, Callable[[CaptionRow, int], str]] = {
    "missing": lambda row, limit: f"missing: {row.problem}",
    "shared": lambda row, limit: f"shared by {row.num_sharing} pictures",
    "long": lambda row, limit: f"too long: training reads {limit} of {row.length} tokens",
    "perhaps_long": lambda row, limit: f"perhaps too long: training reads {limit} tokens",
}
"""What may be wrong with a picture's captions: a sentence, from its row and the limit in tokens."""


def without_shuffles(dataset: Dataset) -> Dataset:
    """The same dataset, whose captions have their tags as they are written."""
    return Dataset(
        folders=tuple(
            replace(folder, settings=replace(folder.settings, num_tag_shuffles=0)) for folder in dataset.folders
        )
    )


def group_by_captions(scanned: ScannedDataset) -> dict[tuple[str, ...], dict[Path, str]]:
    """For all captions there are: the files that have them, with an id of each.

    Folders for which one caption was asked are left out, and so are pictures without one.
    """
    names: dict[tuple[str, ...], dict[Path, str]] = defaultdict(dict)
    for folder in scanned.folders:
        if folder.folder.settings.caption_source != "one_text":
            for picture in folder.pictures:
                names[picture.caption.texts].setdefault(picture.path, picture.id)
    names.pop((), None)
    return names


def list_caption_rows(scanned: ScannedDataset, counter: CaptionCounter) -> tuple[CaptionRow, ...]:
    """A row for each picture of each folder, in the order of the dataset."""
    groups = group_by_captions(scanned)
    return tuple(_make_row(picture, groups, counter) for picture in scanned.pictures)


def _make_row(
    picture: Picture, groups: Mapping[tuple[str, ...], Mapping[Path, str]], counter: CaptionCounter
) -> CaptionRow:
    texts = picture.caption.texts
    sharing = groups.get(texts, {})
    return CaptionRow(
        picture=picture.id,
        bucket=str(picture.bucket),
        captions=texts,
        problem=picture.caption.problem,
        length=max(map(counter.measure, texts), default=0),
        num_sharing=len(sharing) if picture.path in sharing else 1,
        length_mark=max(map(counter.find_length_mark, texts), default=""),
    )


def write_tsv(rows: Sequence[CaptionRow], counter: CaptionCounter) -> str:
    """All rows as text that spreadsheets read: tabs between cells, quoted where a cell holds one."""
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(("picture", "bucket", counter.unit, "marks", "caption"))
    for row in rows:
        marks = "; ".join(MARKS[mark](row, counter.limit) for mark in row.marks)
        writer.writerow((row.picture, row.bucket, row.length, marks, BETWEEN_CAPTIONS.join(row.captions)))
    return text.getvalue()


def count_marks(rows: Sequence[CaptionRow]) -> dict[str, int]:
    """For each of MARKS how many rows have it."""
    return {mark: sum(mark in row.marks for row in rows) for mark in MARKS}


def to_view(rows: Sequence[CaptionRow], counter: CaptionCounter, *, max_rows: int) -> dict[str, Any]:
    """The beginning of the table as JSON, for the canvas.

    Args:
        rows: All of them; they are counted.
        counter: That they were made with.
        max_rows: Rows that are handed over.
    """
    return {
        "unit": counter.unit,
        "limit": counter.limit,
        "total": len(rows),
        "counts": count_marks(rows),
        "rows": [
            {
                "picture": row.picture,
                "bucket": row.bucket,
                "length": row.length,
                "marks": list(row.marks),
                "num_sharing": row.num_sharing,
                "captions": [_shorten(caption) for caption in row.captions],
                "problem": row.problem,
            }
            for row in rows[:max_rows]
        ],
    }


def _shorten(caption: str) -> str:
    return caption if len(caption) <= MAX_SHOWN_LETTERS else f"{caption[:MAX_SHOWN_LETTERS]}..."
