from __future__ import annotations

import builtins
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.data.caption_tables import TABLE_READERS, CaptionTable, Columns, read_table
from lumina2_trainer.trainer_core.errors import TrainerError

from .sample_files import TABLE_WRITERS

COLUMNS = Columns(file="file_name", caption="caption")


def table_of(tmp_path: Path, source: str, rows: Sequence[dict[str, Any]], columns: Columns = COLUMNS) -> CaptionTable:
    path = tmp_path / f"table.{source}"
    TABLE_WRITERS[source](path, rows)
    return read_table(path, source, columns)


def captions_of(table: CaptionTable, name: str) -> tuple[str, ...] | None:
    row = table.find(name)
    return None if row is None else row.captions


def test_every_source_can_be_written_here() -> None:
    assert set(TABLE_WRITERS) == set(TABLE_READERS)


@pytest.mark.parametrize("source", TABLE_READERS)
@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "two words, and a comma.png",
        "v1.5 final.png",
        'say "cheese".png',
        "\u7ea2\u72d0/\u0932\u093e\u0932 \U0001f98a.webp",
        unicodedata.normalize("NFD", "caf\u00e9/\u304c.jpg"),
        "deep/er/x.y.z.jpeg",
        "line\u2028break.png",
    ],
)
def test_any_name_is_found_with_its_ending_and_without(tmp_path: Path, source: str, name: str) -> None:
    stem = name.rsplit(".", 1)[0]
    for written in (name, stem, "./" + name, unicodedata.normalize("NFC", name)):
        rows = [{"file_name": "other.png", "caption": "no"}, {"file_name": written, "caption": f'of "{name}",\nyes'}]
        table = table_of(tmp_path, source, rows)
        assert captions_of(table, name) == (f'of "{name}",\nyes',)
        assert captions_of(table, "missing.png") is None
        assert [row.file for row in table.unused([name])] == ["other.png"]


@pytest.mark.parametrize("source", TABLE_READERS)
def test_other_columns_and_a_fallback(tmp_path: Path, source: str) -> None:
    columns = Columns(file="path", caption="long", fallback="short")
    rows = [
        {"path": "a.png", "long": "a long text", "short": "a", "score": "1"},
        {"path": "b.png", "long": " ", "short": "b", "score": "2"},
        {"path": "c.png", "long": "", "short": "", "score": "3"},
    ]
    table = table_of(tmp_path, source, rows, columns)
    assert [captions_of(table, name) for name in ("a.png", "b.png", "c.png")] == [("a long text",), ("b",), ()]
    where = "row 3" if source == "parquet" else f"line {4 if source == 'csv' else 3}"
    assert table.rows["c.png"].problem == f"table.{source} {where} has nothing in column 'long': write a caption there"


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_a_list_holds_several_captions(tmp_path: Path, source: str) -> None:
    table = table_of(tmp_path, source, [{"file_name": "a.png", "caption": ["one", "", "two"]}])
    assert captions_of(table, "a.png") == ("one", "two")


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("jsonl", "", "table.jsonl holds no rows: write one for each picture"),
        (
            "jsonl",
            '{"file_name": "a.png", "caption": "x"}\n{"file_name": ',
            "line 2 is '{\"file_name\":', which is no JSON",
        ),
        ("jsonl", "[1]\n", 'line 1 is \'[1]\', which is no JSON object: write {"file_name": "a.png"'),
        ("jsonl", "[" * 100000, "line 1 is '[[["),
        ("jsonl", '{"caption": "x"}', "line 1 has no column 'file_name' but 'caption': set file_column"),
        ("jsonl", '{"file_name": "a"}', "line 1 has no column 'caption' but 'file_name'"),
        ("jsonl", '{"file_name": 3, "caption": "x"}', "line 1 has 3 in column 'file_name': write the picture's path"),
        ("jsonl", '{"file_name": "a", "caption": 7}', "line 1 has 7 in column 'caption': a caption is a text"),
        ("jsonl", '{"file_name": "a", "caption": ["x", null]}', "line 1 has ['x', None] in column 'caption'"),
        ("csv", "file_name,caption\na.png,x\n./a.png,y\n", "line 3 names './a.png' again, after line 2: keep one row"),
        ("csv", "file_name,caption\na.png,x, y\n", "line 2 has 3 fields, ['a.png', 'x', ' y'], where the first line"),
        ("csv", "name,text\na.png,x\n", "line 2 has no column 'file_name' but 'name', 'text'"),
        ("csv", 'file_name,caption\na.png,"x\n', "is not csv (unexpected end of data): close its double quotes"),
        ("parquet", "PAR1 no", "table.parquet is not a parquet file"),
    ],
)
def test_bad_tables_are_one_sentence(tmp_path: Path, source: str, content: str, message: str) -> None:
    if source == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table.{source}"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TrainerError, match=re.escape(message)) as caught:
        read_table(path, source, COLUMNS)
    assert f"table.{source}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["jsonl", "csv"])
def test_a_table_that_is_not_utf8_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / f"table.{source}").write_bytes('{"file_name": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(TrainerError, match=rf"table\.{source} is not UTF-8 text .*: save it as UTF-8"):
        read_table(tmp_path / f"table.{source}", source, COLUMNS)


def test_a_missing_parquet_column_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"table\.parquet has no column 'file_name' but 'name', 'caption'"):
        table_of(tmp_path, "parquet", [{"name": "a.png", "caption": "x"}])
    with pytest.raises(TrainerError, match=r"has no column 'caption' but 'file_name', 'text'"):
        table_of(tmp_path, "parquet", [{"file_name": "a.png", "text": "x"}])


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(TrainerError, match=r"without pyarrow: run pip install pyarrow \(or lumina2-trainer\[parquet\]"):
        read_table(tmp_path / "table.parquet", "parquet", COLUMNS)


def test_unread_columns_may_hold_anything(tmp_path: Path) -> None:
    row: Mapping[str, Any] = {"file_name": "a.png", "caption": "x", "tags": {"deep": [1, None]}}
    assert captions_of(table_of(tmp_path, "jsonl", [dict(row)]), "a.png") == ("x",)
