"""Rows of the caption table: what they say, and what they mark."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lumina2_trainer.trainer_core.data.caption_rows import (
    CaptionCounter,
    count_marks,
    list_caption_rows,
    to_view,
    without_shuffles,
    write_tsv,
)
from lumina2_trainer.trainer_core.data.folder import Dataset
from lumina2_trainer.trainer_core.data.scan import scan_dataset

from .sample_files import make_context, open_folder, write_pictures

WORDS = CaptionCounter(
    limit=4, build_prompt=lambda caption: f"be good {caption}", count_tokens=lambda text: len(text.split())
)
LETTERS = CaptionCounter(limit=4, build_prompt=lambda caption: f"be good {caption}")


def write_set(tmp_path: Path, captions: dict[str, str]) -> None:
    folder = tmp_path / "input" / "set"
    write_pictures(folder, {f"{name}.png": (64, 64) for name in captions})
    for name, caption in captions.items():
        (folder / f"{name}.txt").write_text(caption, "utf-8")


def test_row_has_bucket_length_and_caption_with_trigger_words(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "a cat"})
    scanned = scan_dataset(open_folder(context, trigger_words="sks"), context)
    (words,) = list_caption_rows(scanned, WORDS)
    assert (words.picture, words.bucket, words.captions, words.length) == ("1/a.png", "64 x 64", ("sks, a cat",), 5)
    (letters,) = list_caption_rows(scanned, LETTERS)
    assert letters.length == len("sks, a cat")


def test_missing_shared_and_long_captions_are_marked(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "a cat", "b": "one", "c": "one", "d": "gone", "e": "a cat sleeps"})
    (tmp_path / "input" / "set" / "d.txt").unlink()
    rows = list_caption_rows(scan_dataset(open_folder(context), context), WORDS)
    assert [row.marks for row in rows] == [(), ("shared",), ("shared",), ("missing",), ("long",)]
    assert [row.num_sharing for row in rows] == [1, 2, 2, 1, 1]
    assert "no text file" in rows[3].problem
    assert count_marks(rows) == {"missing": 1, "shared": 2, "long": 1, "perhaps_long": 0}


def test_length_is_guessed_from_bytes_without_a_tokenizer(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "x" * 8, "b": "x" * 9, "c": "图图图"})  # 8 bytes of system prompt, 16 bytes in all
    rows = list_caption_rows(scan_dataset(open_folder(context), context), LETTERS)
    assert [row.marks for row in rows] == [(), ("perhaps_long",), ("perhaps_long",)]


def test_one_text_for_all_is_not_marked_as_shared(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "", "b": ""})
    scanned = scan_dataset(open_folder(context, caption_source="one_text", caption="cats"), context)
    assert [row.marks for row in list_caption_rows(scanned, WORDS)] == [(), ()]


def test_all_captions_of_a_picture_are_there_but_no_shuffles(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "a, b, c, d\none"})
    dataset = open_folder(context, caption_lines="one_each", num_tag_shuffles=5)
    (row,) = list_caption_rows(scan_dataset(without_shuffles(dataset), context), WORDS)
    assert row.captions == ("a, b, c, d", "one")
    assert row.length == 6  # of the longer one


def test_every_resolution_has_its_rows_and_no_caption_is_shared_with_itself(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "cat"})
    rows = list_caption_rows(scan_dataset(open_folder(context, more_resolutions="128"), context), WORDS)
    assert [(row.picture, row.bucket, row.marks) for row in rows] == [
        ("1/a.png", "64 x 64", ()),
        ("2/a.png", "128 x 128", ()),
    ]


def test_text_is_read_back_by_a_csv_reader(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": 'a "red"\tcat', "b": "one\ntwo three four"})
    rows = list_caption_rows(scan_dataset(open_folder(context, caption_lines="one_each"), context), WORDS)
    table = list(csv.reader(io.StringIO(write_tsv(rows, WORDS)), dialect="excel-tab"))
    assert table == [
        ["picture", "bucket", "tokens", "marks", "caption"],
        ["1/a.png", "64 x 64", "5", "too long: training reads 4 of 5 tokens", 'a "red"\tcat'],
        ["1/b.png", "64 x 64", "5", "too long: training reads 4 of 5 tokens", "one | two three four"],
    ]


def test_view_is_cut_but_counts_all(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "y" * 3000, "b": "one", "c": "one"})
    view = to_view(list_caption_rows(scan_dataset(open_folder(context), context), WORDS), WORDS, max_rows=2)
    assert (view["total"], len(view["rows"]), view["counts"]["shared"]) == (3, 2, 2)
    assert view["rows"][0]["captions"] == ["y" * 2000 + "..."]


def test_without_shuffles_keeps_everything_else(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_set(tmp_path, {"a": "cat"})
    shuffled = open_folder(context, num_tag_shuffles=3, repeats=2)
    assert without_shuffles(shuffled) == Dataset(folders=open_folder(context, repeats=2).folders)
