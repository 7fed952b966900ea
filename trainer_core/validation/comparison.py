"""One picture that shows several versions of the same prompts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..data.fonts import Font, choose_font, list_fonts

TILE = 192
"""Usual side of a cell in pixels."""
LABEL_HEIGHT = 28
MARGIN = 12
FONT_SIZE = 16


def draw_comparison(
    columns: Mapping[str, Sequence[Path]], captions: Sequence[str], path: Path, *, tile: int = TILE
) -> None:
    """Draw a row for each caption and a column for each version.

    Args:
        columns: Pictures by the column's title, in the order of the captions.
        captions: One for each row.
        path: The PNG to write.
        tile: Side of a cell in pixels; pictures are scaled into it.
    """
    row_height = tile + LABEL_HEIGHT + MARGIN
    sheet_width = MARGIN + len(columns) * (tile + MARGIN)
    sheet = Image.new("RGB", (sheet_width, LABEL_HEIGHT + MARGIN + len(captions) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    fonts = list_fonts(FONT_SIZE)
    for column, (title, pictures) in enumerate(columns.items()):
        x = MARGIN + column * (tile + MARGIN)
        draw.text((x + tile // 2, LABEL_HEIGHT // 2 + 4), title, fill="black", font=fonts[0], anchor="mm")
        for row, picture in enumerate(pictures):
            with Image.open(picture) as image:
                scale = tile / max(image.size)
                size = (round(image.width * scale), round(image.height * scale))
                sheet.paste(
                    image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x, LABEL_HEIGHT + row * row_height)
                )
    for row, caption in enumerate(captions):
        y = LABEL_HEIGHT + row * row_height + tile + LABEL_HEIGHT // 2
        font = choose_font(caption, fonts)
        text = _shorten(caption, font, sheet_width - 2 * MARGIN)
        draw.text((sheet_width // 2, y), text, fill="dimgray", font=font, anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _shorten(text: str, font: Font, width: int) -> str:
    """The start of a text that is too wide."""
    if font.getlength(text) <= width:
        return text
    kept = next(n for n in range(len(text), -1, -1) if font.getlength(f"{text[:n]}...") <= width or n == 0)
    return f"{text[:kept].rstrip()}..."
