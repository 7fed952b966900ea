from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data import contact_sheet
from lumina2_trainer.trainer_core.data.contact_sheet import draw_contact_sheet, wrap_text
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from PIL import Image, ImageFont

from .sample_files import make_context, open_folder, write_pictures

FONT = ImageFont.load_default(14)
ODD_TEXTS = [
    "a red fox in the snow",
    "\u7ea2\u8272\u7684\u72d0\u72f8\u5728\u96ea\u5730\u91cc" * 20,
    "\u0932\u093e\u0932 \u0932\u094b\u092e\u095c\u0940 " * 20,
    "\U0001f98a\U0001f469\u200d\U0001f680 \u202eabc",
    "\u0627\u0644\u062b\u0639\u0644\u0628",
    "x" * 3000,
    "tab\tnull\x00bell\x07",
    "",
]


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return make_context(tmp_path)


def draw(context: StepContext, **settings: object) -> Path:
    return draw_contact_sheet(scan_dataset(open_folder(context, **settings), context), context.cache_dir / "sheets")


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_wrap_text_keeps_within_width_and_lines(text: str) -> None:
    lines = wrap_text(text, FONT, 192, 4)
    assert len(lines) <= 4
    assert all(FONT.getlength(line) <= 192 for line in lines)


def test_wrap_text_breaks_between_words_and_marks_what_is_left_out() -> None:
    assert wrap_text("a red fox", FONT, 192, 4) == ["a red fox"]
    lines = wrap_text("a small red fox runs through deep snow at night", FONT, 100, 2)
    assert lines[0] == "a small red fox"
    assert lines[1].endswith("...")
    assert "".join(wrap_text("y" * 40, FONT, 192, 4)) == "y" * 40


def test_wrap_text_works_with_the_bitmap_font() -> None:
    font = ImageFont.load_default_imagefont()
    assert wrap_text("caf\u00e9 \u72d0", font, 192, 4) == ["caf\u00e9 ?"]


def test_sheet_shows_each_picture_as_it_is_cropped(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "input" / "set"
    folder.mkdir()
    for name, colour in (("1", "red"), ("2", "blue")):
        picture = Image.new("RGB", (300, 100), "white")
        picture.paste(colour, (100, 0, 200, 100))
        picture.save(folder / f"{name}.png")
    sheet = np.asarray(Image.open(draw(context)).convert("RGB")).reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (sheet == colour).all(1).sum() > 0.9 * contact_sheet.THUMBNAIL**2


def test_sheet_of_odd_captions_is_drawn(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "input" / "set"
    for index, text in enumerate(ODD_TEXTS):
        write_pictures(folder, {f"{index}.png": (40 + 9 * index, 60)})
        (folder / f"{index}.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert Image.open(draw(context)).width == contact_sheet.MAX_COLUMNS * contact_sheet.TILE_WIDTH


def test_sheet_of_many_pictures_shows_some(
    tmp_path: Path, context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_THUMBNAILS", 3)
    write_pictures(tmp_path / "input" / "set", {f"{i}.png": (16, 16) for i in range(7)})
    assert Image.open(draw(context)).width == 3 * contact_sheet.TILE_WIDTH


def test_sheet_is_drawn_anew_only_when_it_changes(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "input" / "set"
    write_pictures(folder, {"a.png": (64, 64)})
    path = draw(context)
    drawn_at = path.stat().st_mtime_ns
    assert (draw(context), path.stat().st_mtime_ns) == (path, drawn_at)
    (folder / "a.txt").write_text("another caption")
    assert draw(context) != path
