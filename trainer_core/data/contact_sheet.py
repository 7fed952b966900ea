"""One picture of many thumbnails: each as it is cropped, with its bucket and caption."""

from __future__ import annotations

import hashlib
import io
import json
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import TrainerError
from ..files import write_bytes_atomically
from .fonts import Font, choose_font, list_fonts
from .images import UnreadablePicture, decode_picture, fit_to_bucket
from .picture_index import read_content
from .scan import Picture, ScannedDataset
from .sizing import crop_box

SHEET_VERSION = 1
MAX_THUMBNAILS = 60
MAX_COLUMNS = 6
THUMBNAIL = 192
"""Longest side of a thumbnail in pixels."""
MARGIN = 12
FONT_SIZE = 14
LINE_HEIGHT = 18
CAPTION_LINES = 4
TILE_WIDTH = THUMBNAIL + 2 * MARGIN
TILE_HEIGHT = THUMBNAIL + (1 + CAPTION_LINES) * LINE_HEIGHT + 3 * MARGIN
BACKGROUND, INK, FAINT_INK, WARNING_INK = "#ffffff", "#202020", "#707070", "#b00020"


def draw_contact_sheet(scanned: ScannedDataset, folder: Path) -> Path:
    """Draw a dataset, or find the sheet that was drawn of it before.

    Args:
        scanned: Up to 60 of its pictures are shown, spread evenly.
        folder: Where sheets lie, named by what they show.
    """
    pictures = _choose(scanned.pictures)
    shown = [(p.id, p.facts.content_hash, str(p.bucket), *_caption_parts(p), *_crop_parts(p)) for p in pictures]
    content = json.dumps([SHEET_VERSION, len(scanned.pictures), shown])
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.png"
    if not path.exists():
        buffer = io.BytesIO()
        _draw(pictures, len(scanned.pictures)).save(buffer, "PNG")
        write_bytes_atomically(path, buffer.getvalue())
    return path


def _caption_parts(picture: Picture) -> list[str]:
    """What a tile says of the caption."""
    caption = picture.caption
    num_more = [str(len(caption.texts) - 1)] if len(caption.texts) > 1 else []
    return [caption.text, caption.problem, *num_more]


def _crop_parts(picture: Picture) -> list[str]:
    """What a thumbnail shows, where it is not the largest part in the centre."""
    usual = (crop_box(picture.facts.width, picture.facts.height, picture.bucket),)
    return [] if picture.boxes == usual else [str(picture.boxes)]


def _choose(pictures: Sequence[Picture]) -> list[Picture]:
    count = min(len(pictures), MAX_THUMBNAILS)
    return [pictures[index * len(pictures) // count] for index in range(count)]


def _draw(pictures: Sequence[Picture], num_pictures: int) -> Image.Image:
    columns = min(MAX_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    header = 2 * MARGIN + LINE_HEIGHT
    sheet = Image.new("RGB", (columns * TILE_WIDTH, header + rows * TILE_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = list_fonts(FONT_SIZE)[0]
    shown = "" if len(pictures) == num_pictures else f"{len(pictures)} of "
    draw.text((MARGIN, MARGIN), f"{shown}{num_pictures} pictures", fill=INK, font=font)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        _draw_tile(sheet, draw, font, picture, column * TILE_WIDTH + MARGIN, header + row * TILE_HEIGHT)
    return sheet


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, font: Font, picture: Picture, left: int, top: int
) -> None:
    thumbnail = _load_thumbnail(picture)
    offset_x, offset_y = (THUMBNAIL - thumbnail.width) // 2, THUMBNAIL - thumbnail.height
    sheet.paste(thumbnail, (left + offset_x, top + offset_y))
    line_y = top + THUMBNAIL + MARGIN // 2
    repeats = f", {picture.repeats} times" if picture.repeats > 1 else ""
    crops = f", {len(picture.boxes)} crops" if len(picture.boxes) > 1 else ""
    draw.text((left, line_y), f"{picture.bucket}{repeats}{crops}", fill=FAINT_INK, font=font)
    num_more = len(picture.caption.texts) - 1
    caption = (
        picture.caption.text + (f" (+{num_more})" if num_more > 0 else "") or f"NO CAPTION: {picture.caption.problem}"
    )
    ink = WARNING_INK if picture.caption.problem else INK
    caption = _clean(caption)
    font = choose_font(caption, list_fonts(FONT_SIZE))
    for line in wrap_text(caption, font, THUMBNAIL, CAPTION_LINES):
        line_y += LINE_HEIGHT
        draw.text((left, line_y), line, fill=ink, font=font)


def _load_thumbnail(picture: Picture) -> Image.Image:
    try:
        content, _ = read_content(picture.path)
        image = decode_picture(content).image
    except UnreadablePicture as error:
        raise TrainerError(f"{picture.id} changed while it was read ({error}): queue Dataset Folder again") from error
    bucket = picture.bucket
    scale = THUMBNAIL / max(bucket.width, bucket.height)
    size = (round(bucket.width * scale), round(bucket.height * scale))
    return fit_to_bucket(image, bucket, box=picture.boxes[0], size=size)


def wrap_text(text: str, font: Font, width: int, num_lines: int) -> list[str]:
    """Break text into lines of at most `width` pixels; what does not fit ends in "...".

    Words are kept together where they fit; scripts without spaces are broken between characters. Letters that the font
    lacks come out as boxes.
    """
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode("latin-1", "replace").decode("latin-1")  # the bitmap font refuses anything else
    words = text.split()
    lines: list[str] = []
    line = ""
    for word in words:
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width and len(lines) <= num_lines:
            count = _count_fitting(word, font, width)
            lines.append(word[:count])
            word = word[count:]
        line = word
        if len(lines) > num_lines:
            break
    lines = [*lines, line] if line else lines
    if len(lines) <= num_lines:
        return lines
    last = lines[num_lines - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: num_lines - 1], f"{last}..."]


def _count_fitting(word: str, font: Font, width: int) -> int:
    count = 1
    while count < len(word) and font.getlength(word[: count + 1]) <= width:
        count += 1
    return count


def _clean(text: str) -> str:
    """The beginning of a text, without control characters."""
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text[:2000])
