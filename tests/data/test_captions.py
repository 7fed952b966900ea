from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.data.caption_tables import Columns, read_table
from lumina2_trainer.trainer_core.data.captions import (
    CAPTION_SOURCES,
    MAX_CAPTION_BYTES,
    CaptionFile,
    CaptionPlan,
    add_trigger_words,
    join_lines,
    make_caption,
    read_caption_file,
    shuffle_tags,
)

from .sample_files import TABLE_WRITERS


def caption_of(tmp_path: Path, content: bytes) -> tuple[str, str]:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    caption = read_caption_file(path)
    return join_lines(caption.text), caption.problem


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
    table = None
    if source in TABLE_WRITERS:
        TABLE_WRITERS[source](tmp_path / f"table.{source}", [{"file_name": "red_fox__2.png", "caption": "red fox 2"}])
        table = read_table(tmp_path / f"table.{source}", source, Columns(file="file_name", caption="caption"))
    caption = make_caption(
        CaptionPlan(source=source, fixed_caption="red fox\n2\n", trigger_words="tok", table=table),
        name="red_fox__2.png",
        caption_file=CaptionFile(path=tmp_path / "red_fox__2.txt"),
    )
    assert (caption.texts, caption.problem) == (("tok, red fox 2",), "")


def test_a_missing_text_file_is_a_problem_even_with_trigger_words() -> None:
    plan = CaptionPlan(source="textfile", trigger_words="tok")
    caption = make_caption(plan, name="a.png", caption_file=CaptionFile(problem="no text file"))
    assert (caption.text, caption.problem) == ("", "no text file")


def test_an_empty_text_file_is_a_problem_without_trigger_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    file = CaptionFile(path=tmp_path / "a.txt")
    bare, with_words = CaptionPlan(source="textfile"), CaptionPlan(source="textfile", trigger_words="tok")
    assert "the caption is empty" in make_caption(bare, name="a.png", caption_file=file).problem
    assert make_caption(with_words, name="a.png", caption_file=file).texts == ("tok",)


def texts_of(content: str, **plan: object) -> tuple[str, ...]:
    settings = {"source": "one_text", "fixed_caption": content, **plan}
    return make_caption(CaptionPlan(**settings), name="a.png", caption_file=CaptionFile()).texts


def test_each_line_can_be_a_caption() -> None:
    content = " a fox \n\nsnow, a fox\r\na fox\n"
    assert texts_of(content) == ("a fox snow, a fox a fox",)
    assert texts_of(content, lines="one_each") == ("a fox", "snow, a fox")
    assert texts_of(content, lines="one_each", trigger_words="tok") == ("tok, a fox", "tok, snow, a fox")


def test_shuffled_tags_keep_the_first_and_lose_none() -> None:
    text = "1girl, solo, red hair, smile, outdoors"
    orders = shuffle_tags(text, num_shuffles=8, num_kept=2, separator=",")
    assert 1 <= len(orders) == len(set(orders)) <= 5 and text not in orders
    for order in orders:
        tags = order.split(", ")
        assert tags[:2] == ["1girl", "solo"]
        assert sorted(tags) == sorted(text.split(", "))
    assert shuffle_tags(text, num_shuffles=8, num_kept=2, separator=",") == orders


def test_no_more_orders_are_made_than_asked_for_and_texts_have_orders_of_their_own() -> None:
    orders = {}
    for first in "abcdefgh":
        text = ", ".join([first, *"123456"])
        made = shuffle_tags(text, num_shuffles=2, num_kept=1, separator=",")
        assert len(made) == 2  # of 720: hardly the same twice
        orders[first] = [order.removeprefix(first) for order in made]
    assert len(set(map(tuple, orders.values()))) == len(orders)


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [("a|b", "|", ["b| a"]), ("a b", " ", ["b a"]), ("one sentence.", ",", []), ("", ",", []), ("a,,a", ",", [])],
)
def test_shuffled_tags_of_few_tags(text: str, separator: str, expected: list[str]) -> None:
    assert shuffle_tags(text, num_shuffles=20, num_kept=0, separator=separator) == expected


def test_shuffled_captions_keep_trigger_words_in_front() -> None:
    for content in ("a, b, c, d", "tok, a, b, c, d"):
        first, *others = texts_of(content, trigger_words="tok", num_tag_shuffles=5)
        assert first == "tok, a, b, c, d"
        assert len(others) >= 3
        assert all(text.startswith("tok, ") and text.count("tok") == 1 for text in others)
        assert {frozenset(text.split(", ")) for text in others} == {frozenset(["tok", "a", "b", "c", "d"])}
