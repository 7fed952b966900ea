"""What a picture looks like, in two numbers: whether it is sharp, and what else looks the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageFilter

LOOKED_AT = 512
"""Longer side in pixels at which sharpness is measured, so that large pictures are not called sharper."""
BLURRY = 12.0
"""Pictures of less sharpness are called blurry. Photographs in focus have 50 to 3000, out of focus 1 to 10;
of a single colour 0."""
MAX_DIFFERENT_BITS = 3
"""Of 64, between pictures that look the same: scaled, compressed again, or slightly changed in brightness."""
NUM_BANDS = MAX_DIFFERENT_BITS + 1
"""Hashes that differ in no more bits agree in at least one of these parts."""
HASH_BITS = 64


def measure_sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture, of values from 0 to 255 (Pech-Pacheco et al., ICPR 2000)."""
    grey = image.convert("L")
    grey.thumbnail((LOOKED_AT, LOOKED_AT), Image.Resampling.BILINEAR)
    laplacian = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)
    edges = np.asarray(grey.filter(laplacian), dtype=np.float64)[1:-1, 1:-1]
    return float(edges.var()) if edges.size else 0.0


def difference_hash(image: Image.Image) -> str:
    """64 bits as 16 hexadecimal digits: whether each of 8 x 8 parts is brighter than the one at its left (dHash)."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).flatten()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def find_look_alikes(hashes: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of names whose hashes hardly differ, in the order of the names.

    Args:
        hashes: From `difference_hash`, by name. Pictures without any structure must not be among them.
    """
    numbers = {name: int(value, 16) for name, value in hashes.items()}
    group_of = {name: name for name in numbers}

    def first_of(name: str) -> str:
        while group_of[name] != name:
            name = group_of[name]
        return name

    for same_part in _share_a_part(numbers):
        for i, name in enumerate(same_part):
            for other in same_part[i + 1 :]:
                if (numbers[name] ^ numbers[other]).bit_count() <= MAX_DIFFERENT_BITS:
                    group_of[first_of(other)] = first_of(name)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in numbers:
        groups[first_of(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _share_a_part(numbers: Mapping[str, int]) -> list[Sequence[str]]:
    """Names whose hashes agree in a quarter of their bits: comparing only these takes no time for 10,000 pictures."""
    width = HASH_BITS // NUM_BANDS
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, number in numbers.items():
        for band in range(NUM_BANDS):
            found[band, (number >> (band * width)) & ((1 << width) - 1)].append(name)
    return [names for names in found.values() if len(names) > 1]
