"""What the demo model is trained on: emoji with their Unicode names, drawn from Noto Color Emoji.

Flags of countries, skin tones and families (dozens of nearly equal pictures) are left out. The autoencoder also sees
the same emoji in the style of Fluent Emoji 3D, so that it rebuilds the demo dataset well; the transformer never does.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

EMOJI_TEST_PATH = Path("/usr/share/unicode/emoji/emoji-test.txt")
"""From Debian's unicode-data."""
NOTO_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""From Debian's fonts-noto-color-emoji."""
NOTO_STRIKE = 109
"""The one bitmap size in the font; its glyphs are 136 x 128 pixels."""
RESOLUTION = 128

LEFT_OUT_SUBGROUPS = {"country-flag", "subdivision-flag", "skin-tone", "hair-style"}
LEFT_OUT_NAMES = ("family:", "kiss:", "couple with heart:")
SKIN_TONES = range(0x1F3FB, 0x1F400)


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One fully qualified emoji."""

    text: str
    name: str
    """Lower-case Unicode name, "red apple": the caption."""

    @property
    def fluent_file(self) -> str:
        """File name in the npm package @lobehub/fluent-emoji-3d."""
        return "-".join(f"{ord(character):04x}" for character in self.text) + ".webp"


@dataclass(frozen=True, kw_only=True)
class Material:
    """Pictures and captions, as they travel to the machine that trains."""

    captions: list[str]
    noto_NHWC: np.ndarray
    """[N, 128, 128, 3] uint8, one for each caption."""
    fluent_NHWC: np.ndarray
    """[N, 128, 128, 3] uint8, the same emoji in the other style; for the autoencoder only."""


def read_emoji(path: Path = EMOJI_TEST_PATH) -> list[Emoji]:
    """The emoji of Unicode's emoji-test.txt that the demo model learns."""
    found, subgroup = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.split(":")[1].strip()
        match = re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.+)", line)
        if not match or subgroup in LEFT_OUT_SUBGROUPS:
            continue
        codes = [int(code, 16) for code in match[1].split()]
        name = match[2].lower()
        if any(code in SKIN_TONES for code in codes) or name.startswith(LEFT_OUT_NAMES):
            continue
        found.append(Emoji(text="".join(map(chr, codes)), name=plain_name(name)))
    return found


def plain_name(name: str) -> str:
    """ASCII without parentheses, which ComfyUI reads as weights."""
    name = name.replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return name.replace("(", "").replace(")", "").strip()


def draw_noto(emoji: Emoji, font: ImageFont.FreeTypeFont) -> Image.Image:
    """128 x 128 on white."""
    width, height = 136, 128
    canvas = Image.new("RGBA", (width, width), "white")
    position = (0, (width - height) // 2)
    ImageDraw.Draw(canvas).text(position, emoji.text, font=font, embedded_color=True, anchor="lt")
    return canvas.convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)


def draw_fluent(path: Path) -> Image.Image:
    """128 x 128 on white."""
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return canvas.convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)


def write_material(path: Path, fluent_dir: Path) -> None:
    """Draw everything into one zip of lossless WebP pictures and their captions (about 23 MB)."""
    emoji = read_emoji()
    font = ImageFont.truetype(str(NOTO_PATH), NOTO_STRIKE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("captions.json", json.dumps([one.name for one in emoji]))
        for index, one in enumerate(emoji):
            pictures = {"noto": draw_noto(one, font), "fluent": draw_fluent(fluent_dir / one.fluent_file)}
            for style, picture in pictures.items():
                buffer = io.BytesIO()
                picture.save(buffer, "WEBP", lossless=True)
                archive.writestr(f"{style}/{index:04d}.webp", buffer.getvalue())


def read_material(path: Path) -> Material:
    """The inverse of `write_material`."""
    with zipfile.ZipFile(path) as archive:
        captions = json.loads(archive.read("captions.json"))
        names = [f"{index:04d}.webp" for index in range(len(captions))]
        noto, fluent = (
            _stack(Image.open(io.BytesIO(archive.read(f"{style}/{name}"))) for name in names)
            for style in ("noto", "fluent")
        )
    return Material(captions=captions, noto_NHWC=noto, fluent_NHWC=fluent)


def _stack(pictures: Iterable[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
