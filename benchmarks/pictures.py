"""Folders of random captioned pictures, sized and compressed like photos."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO_SIZES = ((1536, 1024), (1024, 1536), (1400, 1050), (1050, 1400), (1224, 1224))
"""Width and height in pixels, about 1.5 megapixels."""
TINY_SIZES = ((192, 128), (128, 192), (160, 160))
CAPTION_WORDS = (3, 50)
"""Fewest and most words of a caption."""
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def write_photos(folder: Path, count: int, sizes: tuple[tuple[int, int], ...]) -> None:
    """Write pictures, JPEG and PNG in turn, each with its caption beside it.

    Args:
        folder: Is made.
        count: How many.
        sizes: Width and height of one after another.
    """
    folder.mkdir(parents=True)
    words, generator = random.Random(0), np.random.default_rng(0)
    for i in range(count):
        path = folder / (f"{i:05}.jpg" if i % 2 else f"{i:05}.png")
        _draw_photo(generator, *sizes[i % len(sizes)]).save(path, quality=92, compress_level=3)
        path.with_suffix(".txt").write_text(_write_caption(words), encoding="utf-8")


def _draw_photo(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """Colour clouds, finer and fainter ones over them, and a little grain."""
    pixels = np.full((height, width, 3), 128.0, dtype=np.float32)
    for cell, strength in ((256, 90.0), (64, 40.0), (16, 15.0), (4, 6.0), (1, 3.0)):
        shape = (height // cell + 2, width // cell + 2, 3)
        cloud = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        cloud = cloud.resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(cloud, dtype=np.float32) / 127.5 - 1) * strength
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _write_caption(words: random.Random) -> str:
    return " ".join(
        "".join(words.choices(SYLLABLES, k=words.randint(1, 3))) for _ in range(words.randint(*CAPTION_WORDS))
    )
