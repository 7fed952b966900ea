"""Validation pictures with the prompts they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One validation picture."""

    path: Path
    prompt: str


def read_pictures(paths: Sequence[Path]) -> tuple[Picture, ...]:
    """The pictures with the prompt that is written into each PNG."""
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            pictures.append(Picture(path=path, prompt=str(image.info.get("prompt", ""))))
    return tuple(pictures)
