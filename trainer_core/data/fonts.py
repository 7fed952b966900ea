"""Fonts for captions in any script: what the machine has, and Pillow's own where it has nothing better."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "NotoSansDevanagari-Regular.ttf",
    "Nirmala.ttc",
    "Nirmala.ttf",
    "Kohinoor.ttc",
)
"""Fonts that Linux, Windows and macOS come with: Latin, Greek and Cyrillic first, then Chinese, Japanese, Hindi."""
UNASSIGNED = "\U0010ffff"
"""No font draws this, so what it gives is the box for letters it lacks."""


@functools.cache
def list_fonts(size: int) -> tuple[Font, ...]:
    """Pillow's own font, then those of FONT_FILES that are installed.

    Args:
        size: Height of the letters in pixels.
    """
    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in FONT_FILES:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except (OSError, ImportError):  # not installed, or Pillow has no FreeType
            continue
    return tuple(fonts)


def choose_font(text: str, fonts: Sequence[Font]) -> Font:
    """The first font that lacks the fewest letters of a text."""
    letters = {letter for letter in text if unicodedata.category(letter)[0] == "L"}
    return min(fonts, key=lambda font: count_missing(letters, font))


def count_missing(letters: set[str], font: Font) -> int:
    """How many letters a font draws as a box."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return sum(ord(letter) > 255 for letter in letters)
    box = bytes(font.getmask(UNASSIGNED))
    return sum(bytes(font.getmask(letter)) == box for letter in letters)
