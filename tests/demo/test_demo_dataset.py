"""The demo dataset as it lies in the pack."""

from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.context import DEMO_DIR
from PIL import Image


def pictures(name: str) -> list[Path]:
    return sorted((DEMO_DIR / name).glob("*.webp"))


def test_dataset_has_16_to_24_pictures_and_4_held_out() -> None:
    assert 16 <= len(pictures("dataset")) <= 24
    assert len(pictures("held_out")) == 4


@pytest.mark.parametrize("path", [*pictures("dataset"), *pictures("held_out")], ids=lambda path: path.stem)
def test_picture_is_128_pixels_on_white_with_its_name_as_caption(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.size == (128, 128)
        assert min(picture.convert("RGB").getpixel((0, 0))) >= 250
    assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() == path.stem.replace("_", " ")


def test_held_out_pictures_are_not_trained_on() -> None:
    trained = {path.stem for path in pictures("dataset")}
    assert trained.isdisjoint(path.stem for path in pictures("held_out"))


def test_dataset_is_small_and_its_licence_lies_beside_it() -> None:
    files = [path for name in ("dataset", "held_out") for path in (DEMO_DIR / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert "MIT License" in (DEMO_DIR / "LICENSE-fluent-emoji.txt").read_text(encoding="utf-8")
