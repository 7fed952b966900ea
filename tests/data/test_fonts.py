from __future__ import annotations

import pytest
from lumina2_trainer.trainer_core.data.fonts import choose_font, count_missing, list_fonts
from PIL import ImageFont

OWN = ImageFont.load_default(14)


def test_list_fonts_begins_with_the_one_every_machine_has() -> None:
    assert list_fonts(14)[0].getname() == OWN.getname()


def test_count_missing_knows_boxes() -> None:
    assert count_missing(set("fox"), OWN) == 0
    assert count_missing({"f", "\u72d0", "\u0932"}, OWN) == 2
    assert count_missing({"f", "\u00fc", "\u72d0"}, ImageFont.load_default_imagefont()) == 1


def test_choose_font_takes_the_first_that_has_the_letters() -> None:
    try:
        wide = ImageFont.truetype("DejaVuSans.ttf", 14)
    except OSError:
        pytest.skip("needs the font DejaVu Sans")
    assert choose_font("a fox", [OWN, wide]) is OWN
    assert choose_font("\u043b\u0438\u0441\u0430", [OWN, wide]) is wide
    assert choose_font("\u72d0", [OWN, wide]) is OWN
