"""Captions in a table: a jsonl, csv or parquet file with a row for each picture."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import TrainerError

MAX_LINE_CHARACTERS = 2**20
"""Of a jsonl row or a csv field; a longer one is no caption."""
MAX_SHOWN = 80
"""Characters of a bad value that a message shows."""

Row = tuple[str, Mapping[str, Any]]
"""What a message calls the row, such as "line 3", and its values by column."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table are read."""

    file: str
    caption: str
    fallback: str = ""
    """Read where the caption is empty; none if empty."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that must be there."""
        return tuple(name for name in (self.file, self.caption, self.fallback) if name)


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """One picture's row."""

    place: str
    """Such as "line 3"."""
    file: str
    """The picture as the row names it."""
    captions: tuple[str, ...] = ()
    problem: str = ""
    """Why there is no caption."""


@dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """The rows of a table by picture."""

    path: Path
    rows: Mapping[str, CaptionRow]
    """By `picture_key`."""

    @property
    def name(self) -> str:
        """What messages call the table."""
        return self.path.name

    def find(self, name: str) -> CaptionRow | None:
        """The row of a picture, by its path inside the folder, with its ending or without."""
        key = picture_key(name)
        return self.rows.get(key) or self.rows.get(without_ending(key))

    def unused(self, names: list[str]) -> list[CaptionRow]:
        """Rows that name none of the pictures."""
        keys = {picture_key(name) for name in names}
        keys |= {without_ending(key) for key in keys}
        return [row for key, row in self.rows.items() if key not in keys]


def picture_key(name: str) -> str:
    """One spelling of a path: forward slashes, composed letters (macOS writes them decomposed), nothing doubled."""
    return str(PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")))


def without_ending(key: str) -> str:
    """A picture's path without .png."""
    return str(PurePosixPath(key).with_suffix("")) if PurePosixPath(key).suffix else key


def read_table(path: Path, source: str, columns: Columns) -> CaptionTable:
    """Read a whole table.

    Args:
        path: The file.
        source: Key of TABLE_READERS.
        columns: Which columns to read.

    Raises:
        TrainerError: The file or a row cannot be used.
    """
    rows: dict[str, CaptionRow] = {}
    for place, values in TABLE_READERS[source](path, columns):
        row = _read_row(path.name, place, values, columns)
        earlier = rows.setdefault(picture_key(row.file), row)
        if earlier is not row:
            raise TrainerError(
                f"{path.name} {place} names {row.file!r} again, after {earlier.place}: keep one row for each picture;"
                " several captions are one text with a line each, or a list"
            )
    if not rows:
        raise TrainerError(f"{path.name} holds no rows: write one for each picture, or change caption_source")
    return CaptionTable(path=path, rows=rows)


def _read_row(table: str, place: str, values: Mapping[str, Any], columns: Columns) -> CaptionRow:
    _check_columns(f"{table} {place}", values, columns)
    file = values[columns.file]
    if not isinstance(file, str) or not file.strip():
        raise TrainerError(
            f"{table} {place} has {_show(file)} in column {columns.file!r}: write the picture's path inside the folder"
        )
    for name in (columns.caption, columns.fallback):
        captions = _read_captions(table, place, name, values.get(name))
        if captions:
            return CaptionRow(place=place, file=file, captions=captions)
    problem = f"{table} {place} has nothing in column {columns.caption!r}: write a caption there"
    return CaptionRow(place=place, file=file, problem=problem)


def _read_captions(table: str, place: str, column: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise TrainerError(
            f"{table} {place} has {_show(value)} in column {column!r}: a caption is a text or a list of texts"
        )
    return tuple(text for text in texts if text.strip())


def _check_columns(where: str, found: Iterable[str], columns: Columns) -> None:
    """Both columns must be there; with a fallback, one of the two for captions."""
    found = list(found)
    captions = [name for name in (columns.caption, columns.fallback) if name]
    missing = [] if columns.file in found else [columns.file]
    missing += [] if any(name in found for name in captions) else captions[:1]
    if missing:
        raise TrainerError(
            f"{where} has no column {missing[0]!r} but {', '.join(map(repr, found)) or 'none'}:"
            " set file_column and caption_column to the names it uses"
        )


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainerError(
            f"{path.name} cannot be read ({error.strerror or error}): check the file and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise TrainerError(f"{path.name} is not UTF-8 text ({error.reason}): save it as UTF-8") from error


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Row]:
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := file.readline(MAX_LINE_CHARACTERS + 1):
            number += 1
            if len(line) > MAX_LINE_CHARACTERS:
                raise TrainerError(f"{path.name} line {number} is longer than a million characters: shorten it")
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                raise TrainerError(
                    f"{path.name} line {number} is {_show(line.strip())}, which is no JSON object:"
                    f' write {{"{columns.file}": "a.png", "{columns.caption}": "..."}} on one line, or remove it'
                )
            yield f"line {number}", values


def _read_csv(path: Path, columns: Columns) -> Iterator[Row]:
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = next(reader, [])
            for values in reader:
                if not any(values):
                    continue
                place = f"line {reader.line_num}"
                if len(values) != len(names):
                    raise TrainerError(
                        f"{path.name} {place} has {len(values)} fields, {_show(values)}, where the first line names"
                        f" {len(names)}: put texts with commas in double quotes"
                    )
                yield place, dict(zip(names, values, strict=True))
        except csv.Error as error:
            raise TrainerError(
                f"{path.name} line {reader.line_num} is not csv ({error}): close its double quotes, or shorten it"
            ) from error


def _read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise TrainerError(
            f"{path.name} cannot be read without pyarrow: run pip install pyarrow (or lumina2-trainer[parquet]),"
            " or save the table as jsonl or csv"
        ) from error
    with _reading(path):
        try:
            with parquet.ParquetFile(path) as file:
                known = file.schema_arrow.names
                _check_columns(path.name, known, columns)
                wanted = [name for name in columns.names if name in known]
                number = 0
                for batch in file.iter_batches(columns=wanted):
                    for values in batch.to_pylist():
                        number += 1
                        yield f"row {number}", values
        except pyarrow.ArrowException as error:
            raise TrainerError(f"{path.name} is not a parquet file ({error}): write it again") from error


TABLE_READERS: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
"""By caption source, which is also the file's ending. Each takes the file and the columns that are read."""
