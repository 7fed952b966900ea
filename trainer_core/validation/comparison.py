"""One picture that shows several versions of the same prompts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 192
"""Side of a cell in pixels; pictures are scaled into it."""
LABEL_HEIGHT = 28
MARGIN = 12


def draw_comparison(columns: Mapping[str, Sequence[Path]], captions: Sequence[str], path: Path) -> None:
    """Draw a row for each caption and a column for each version.

    Args:
        columns: Pictures by the column's title, in the order of the captions.
        captions: One for each row.
        path: The PNG to write.
    """
    row_height = TILE + LABEL_HEIGHT + MARGIN
    sheet_width = MARGIN + len(columns) * (TILE + MARGIN)
    sheet = Image.new("RGB", (sheet_width, LABEL_HEIGHT + MARGIN + len(captions) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for column, (title, pictures) in enumerate(columns.items()):
        x = MARGIN + column * (TILE + MARGIN)
        draw.text((x + TILE // 2, LABEL_HEIGHT // 2 + 4), title, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(pictures):
            with Image.open(picture) as image:
                tile = image.convert("RGB")
            scale = TILE / max(tile.size)
            tile = tile.resize((round(tile.width * scale), round(tile.height * scale)), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x, LABEL_HEIGHT + row * row_height))
    for row, caption in enumerate(captions):
        y = LABEL_HEIGHT + row * row_height + TILE + LABEL_HEIGHT // 2
        draw.text((sheet_width // 2, y), caption, fill="dimgray", font=font, anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
