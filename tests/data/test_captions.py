from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.data.captions import (
    CAPTION_SOURCES,
    MAX_CAPTION_BYTES,
    CaptionFile,
    add_trigger_words,
    make_caption,
    read_caption_file,
)


def caption_of(tmp_path: Path, content: bytes) -> tuple[str, str]:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    caption = read_caption_file(path)
    return caption.text, caption.problem


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a red fox", "a red fox"),
        (b"\xef\xbb\xbfa red fox\r\n", "a red fox"),
        (b"  a red fox,\n\n  in the snow \n", "a red fox, in the snow"),
        ("\u0932\u093e\u0932 \u7ea2\u72d0 \U0001f98a".encode(), "\u0932\u093e\u0932 \u7ea2\u72d0 \U0001f98a"),
        (b"", ""),
    ],
)
def test_caption_file_becomes_one_line(tmp_path: Path, content: bytes, text: str) -> None:
    assert caption_of(tmp_path, content) == (text, "")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a fox".encode("utf-16"), "a.txt is not UTF-8 text: save it as UTF-8"),
        ("a fox".encode("utf-16-le"), "a.txt is not text: it holds zero bytes, save it as UTF-8"),
        (b"caf\xe9", "a.txt is not UTF-8 text: save it as UTF-8"),
        (b"x" * (MAX_CAPTION_BYTES + 1), "a.txt is larger than 64 KiB: shorten it"),
    ],
)
def test_caption_file_that_is_no_text_is_a_problem(tmp_path: Path, content: bytes, problem: str) -> None:
    assert caption_of(tmp_path, content) == ("", problem)


@pytest.mark.parametrize(
    ("trigger_words", "caption", "expected"),
    [
        ("", "a fox", "a fox"),
        ("flu3d", "a fox", "flu3d, a fox"),
        (" flu3d style, ", "a fox", "flu3d style, a fox"),
        ("flu3d", "flu3d, a fox", "flu3d, a fox"),
        ("flu3d", "flu3d", "flu3d"),
        ("flu3d", "flu3ding a fox", "flu3d, flu3ding a fox"),
        ("flu3d", "", "flu3d"),
    ],
)
def test_trigger_words_come_first_with_one_comma(trigger_words: str, caption: str, expected: str) -> None:
    assert add_trigger_words(trigger_words, caption) == expected


@pytest.mark.parametrize("source", CAPTION_SOURCES)
def test_every_source_gives_a_caption_with_trigger_words(tmp_path: Path, source: str) -> None:
    (tmp_path / "red_fox__2.txt").write_text("red fox 2")
    caption = make_caption(
        source,
        stem="red_fox__2",
        caption_file=CaptionFile(path=tmp_path / "red_fox__2.txt"),
        fixed_caption="red fox\n2\n",
        trigger_words="tok",
    )
    assert (caption.text, caption.problem) == ("tok, red fox 2", "")


def test_a_missing_text_file_is_a_problem_even_with_trigger_words() -> None:
    settings = {"stem": "a", "fixed_caption": "", "trigger_words": "tok"}
    caption = make_caption("textfile", caption_file=CaptionFile(problem="no text file"), **settings)
    assert (caption.text, caption.problem) == ("", "no text file")


def test_an_empty_text_file_is_a_problem_without_trigger_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    settings = {"stem": "a", "fixed_caption": "", "caption_file": CaptionFile(path=tmp_path / "a.txt")}
    assert "the caption is empty" in make_caption("textfile", trigger_words="", **settings).problem
    assert make_caption("textfile", trigger_words="tok", **settings).text == "tok"
